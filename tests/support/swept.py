"""A sweep that has been run, in its folder, without Ray."""

from dataclasses import asdict
from pathlib import Path

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.settings import SweepSettings, sweep_folder
from orchestrator.settings.stored import save
from tests.support.sweeps import WORKLOAD, Desk, completes, cost, make

COUNTS = {"read": 1500, "dropped: empty output": 7, "dropped: equal instruction": 2, "train": 1000, "search": 128}


def swept(root: Path, *, n_tasks: int | None = None, **values) -> tuple[SweepSettings, SweepSnapshot]:
    """A sweep over the small grid, in its folder under `root`; after `n_tasks` it stops, else at its end."""
    settings = make(**values)
    folder = sweep_folder(settings.name, root)
    save(settings, folder)
    desk = Desk(folder, settings)
    for name, value in {"id": "5" * 32, "created_at": 1e9, "data_counts": COUNTS}.items():
        desk.ledger.set_fact(name, value)
    desk.ledger.set_fact("workload", asdict(WORKLOAD))

    def trains(task):
        return completes(task, loss=2 - task.config.rank / 10, costs=cost(peak_memory_mib=100.0 + task.config.rank))

    if n_tasks is None:
        desk.finish(trains)
    else:
        for _ in range(n_tasks):
            desk.do(trains)
    snapshot = SweepSnapshot.of(settings, desk.ledger)
    desk.ledger.close()
    return settings, snapshot
