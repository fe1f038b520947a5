"""Whether one driver keeps up with a cluster: `make bench ARGS=cluster`

python -m tests.bench.cluster --at-once 256 --trials 5000 --trial-seconds 60

The real driver, ledger and MLflow projection under a simulated event loop; of Ray there is nothing, and a trial trains
nothing. So many trials run at once, each reporting four rungs at even intervals unless it is stopped; 4-bit ones bring
baselines. Time is simulated but for the driver's own work: what that takes is measured and passes on the simulated
clock, and reports that arrive meanwhile wait. A decision's lag is what passes from a report's arrival until the driver
has recorded it, decided on it and, where the trial ended, handed its place to the next one.
MLflow is brought up to date as often as by its own process, which is not on the driver's way; how long each time takes
is said beside. On a machine that others use, --processor-time counts the driver's processor time alone: neither what
others take nor the disk's. Prints a table and, as its last line, one JSON object; needs no GPU.
"""

import argparse
import heapq
import json
import resource
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time, time
from typing import Any

import numpy as np

import search_spaces
from orchestrator import settings as settings_file
from orchestrator.driver.driver import Driver, Stop
from orchestrator.ledger import Ledger
from orchestrator.ledger.task import Task, TaskReport
from orchestrator.settings import SweepSettings, stored
from orchestrator.tracking.projection import Tracker
from orchestrator.tracking.writer_process import REST_SHARE, SYNC_SECONDS
from tests.bench.overhead import whole_report, with_similarity
from trainables.values.config import rungs
from trainables.values.errors import ConfigError, SweepError
from trainables.values.workload import Workload

WORKLOAD = Workload(
    base_model="none",
    base_folder="/nowhere",
    base_fingerprint="f" * 64,
    weights="random",
    data="none",
    data_folder="/nowhere",
    data_digest="d" * 64,
    compute_dtype="bfloat16",
)
N_MARKS = 5
"""Moments, evenly over the trials, at which memory and the parts' times are looked at."""


def reports_of(task: Task) -> Iterator[TaskReport]:
    """What a worker says of a task: four rungs of a trial, else one report; held-out loss falls to its last value."""
    last = whole_report(task)
    if task.kind == "train":
        for rung in rungs(task.config.max_steps)[:-1]:
            loss = last.measurement.eval_loss_nats * (2 - rung / task.config.max_steps)
            measured = replace(last.measurement, step=rung, eval_loss_nats=loss)
            yield TaskReport(state="running", measurement=measured, cost=last.cost)
    yield last


@dataclass
class TimedDriver:
    """A sweep's driver, and how long each answer of it took.

    Attributes:
        now: the clock that its work is measured with.
        seconds: of each call by what was asked.
    """

    folder: Path
    settings: SweepSettings
    at_once: int
    now: Callable[[], float] = perf_counter
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        stored.save(self.settings, self.folder)
        self.ledger = Ledger(self.folder / "ledger.db")
        for name, value in {"id": "5" * 32, "created_at": time(), "workload": asdict(WORKLOAD)}.items():
            self.ledger.set_fact(name, value)
        self.driver = Driver(self.settings, WORKLOAD, self.ledger, n_slots=self.at_once, clock=lambda: 0.0)
        self.halves: set[str] = set()

    def timed(self, part: str, call: Callable[[], Any]) -> Any:
        begin = self.now()
        result = call()
        self.seconds[part].append(self.now() - begin)
        return result

    def take(self) -> tuple[Task, Iterator[TaskReport]] | None:
        """The next task, None where there is none now."""
        task = self.timed("next task", self.driver.next_task)
        if task is None:
            return None
        self.driver.began(task)
        return task, reports_of(task)

    def handle(self, task: Task, report: TaskReport) -> bool:
        """One report; returns whether the task ended."""
        if report.is_last and task.kind == "train":
            report = self._compared(task, report)
        decision = self.timed("report", lambda: self.driver.report(task, report))
        is_over = report.is_last or isinstance(decision, Stop)
        if is_over:
            self.timed("end", lambda: self.driver.ended(task))
        return is_over

    def _compared(self, task: Task, report: TaskReport) -> TaskReport:
        """As the worker does: the second half of a pair brings its similarity."""
        half = WORKLOAD.key(task.config.at_other_precision)
        self.halves.add(task.key)
        return with_similarity(report, task, half) if half in self.halves else report


def resident_mib() -> float:
    """MiB that this process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def simulated(
    driver: TimedDriver, n_trials: int, rung_seconds: float, tracker: Tracker | None
) -> Iterator[dict[str, Any]]:
    """Run a sweep; yields what was measured since the last mark, at each mark and at the end."""
    arrivals: list[tuple[float, int, tuple]] = []  # (moment, order, (task, reports))
    clock, order, n_ended, lags, next_sync = 0.0, 0, 0, [], SYNC_SECONDS
    syncs: list[float] = []
    marks = [round(n_trials * (i + 1) / N_MARKS) for i in range(N_MARKS)]

    def begin(moment: float) -> None:
        nonlocal order
        while len(arrivals) < driver.at_once and (taken := driver.take()):
            order += 1
            # spread over a rung, as trials of a running sweep are
            spread = rung_seconds * (order / driver.at_once if order <= driver.at_once else 1.0)
            heapq.heappush(arrivals, (moment + spread, order, taken))

    def since(before: Mapping[str, int]) -> dict[str, Any]:
        parts = {part: values[before.get(part, 0) :] for part, values in driver.seconds.items()}
        return {
            "n_trials": n_ended,
            "lag_p50_seconds": float(np.percentile(lags, 50)),
            "lag_p95_seconds": float(np.percentile(lags, 95)),
            "ms_per_trial": {part: 1000 * sum(v) / max(1, n_ended - n_before) for part, v in parts.items()},
            "sync_p95_seconds": float(np.percentile(syncs, 95)) if syncs else 0.0,
            "resident_mib": resident_mib(),
            "simulated_seconds": clock,
        }

    before, n_before = {}, 0
    begin(clock)
    while arrivals:
        arrived, _, (task, reports) = heapq.heappop(arrivals)
        clock = max(clock, arrived)
        started = driver.now()
        ended = driver.handle(task, next(reports))
        if ended:
            n_ended += task.kind == "train"
        else:
            order += 1
            heapq.heappush(arrivals, (arrived + rung_seconds, order, (task, reports)))
        begin(clock)
        clock += driver.now() - started
        lags.append(clock - arrived)
        if tracker and clock >= next_sync:
            begun = perf_counter()
            tracker.sync()
            syncs.append(perf_counter() - begun)
            next_sync = clock + syncs[-1] + max(SYNC_SECONDS, REST_SHARE * syncs[-1])
        if marks and n_ended >= marks[0]:
            yield since(before)
            marks.pop(0)
            before, n_before, lags, syncs = {part: len(v) for part, v in driver.seconds.items()}, n_ended, [], []
        if n_ended >= n_trials:
            break
    if lags:
        yield since(before)


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The table, a line at a time."""
    parts = sorted({part for row in rows for part in row["ms_per_trial"]})
    yield "lag: from a report's arrival to the driver's decision; the parts: ms a trial; memory: of the whole process"
    heads = "".join(f"{part:>22}" for part in parts)
    yield f"{'trials':>8}{'lag p50 ms':>12}{'lag p95 ms':>12}{heads}{'MLflow s a sync':>18}{'MiB':>8}"
    for row in rows:
        figures = "".join(f"{row['ms_per_trial'].get(part, 0.0):22.2f}" for part in parts)
        lags = (1000 * row["lag_p50_seconds"], 1000 * row["lag_p95_seconds"])
        yield (
            f"{row['n_trials']:8}{lags[0]:12.1f}{lags[1]:12.1f}{figures}"
            f"{row['sync_p95_seconds']:18.2f}{row['resident_mib']:8.0f}"
        )


def measured(given: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    """One simulated sweep, said line by line while it runs."""
    space = search_spaces.load("pareto")
    settings = settings_file.make(
        name="bench",
        space=search_spaces.parse(space.model_dump() | {"method": given.sampler}, source="bench"),
        n_trials=given.trials,  # never asked for in full: baselines count too
        base_model="none",
        data="none",
        device="cpu",
        tracking_uri=given.tracking_uri,
    )
    folder = settings_file.sweep_folder(settings.name, root)
    driver = TimedDriver(folder, settings, given.at_once, process_time if given.processor_time else perf_counter)
    ledger = Ledger(folder / "ledger.db")  # MLflow's process has a connection of its own
    rows = []
    try:
        tracker = None if given.without_mlflow else Tracker(settings, ledger, root)
        for row in simulated(driver, given.trials, given.trial_seconds / 4, tracker):
            rows.append(row)
            print(f"{row['n_trials']} trials after {row['simulated_seconds']:.0f} simulated s", file=sys.stderr)
    finally:
        ledger.close()
        driver.ledger.close()
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--at-once", type=int, default=256, help="trials that run at the same time")
    parser.add_argument("--trials", type=int, default=5000, help="about so many, baselines counted")
    parser.add_argument("--trial-seconds", type=float, default=60.0, help="of a trial that is not pruned")
    parser.add_argument("--sampler", default="tpe", help="tpe, random, nsga2, qmc")
    parser.add_argument("--tracking-uri", default=None, help="of MLflow; default: a temporary SQLite file")
    parser.add_argument("--without-mlflow", action="store_true", help="which takes most of the bench's own time")
    parser.add_argument("--processor-time", action="store_true", help="on a machine that others use")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    try:
        if min(given.at_once, given.trials) < 1 or not given.trial_seconds > 0:
            raise ConfigError("at-once, trials and trial-seconds must be positive")
        with TemporaryDirectory(prefix="qlora-sweep-") as folder:
            rows = measured(given, Path(folder))
    except SweepError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for line in lines(rows):
        print(line)
    worst = max(row["lag_p95_seconds"] for row in rows)
    print(json.dumps({**vars(given), "lag_p95_seconds": worst, "marks": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
