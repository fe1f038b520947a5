"""A sweep run to its end and published, shown while it runs, with the exit code of what became of it.

It imports what a sweep needs, so it is imported only once settings are sound.
"""

import logging
import signal
from collections.abc import Mapping
from dataclasses import replace
from time import monotonic
from typing import Any

import typer
from rich.console import Console

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.analysis.status import to_come
from orchestrator.analysis.verdict import failed_evaluations
from orchestrator.cli.progress import ProgressDisplay, print_result
from orchestrator.cluster import ray_cluster
from orchestrator.driver import base_targets, duration, sweep
from orchestrator.driver.plan import why_empty
from orchestrator.ledger import Ledger
from orchestrator.settings import ROOT, SweepSettings, sweep_folder
from orchestrator.settings.command import command
from orchestrator.tracking.server import check_server
from orchestrator.tracking.store import has_whole_run, store_file
from orchestrator.tracking.writer import MlflowWriter
from orchestrator.verify import ledger as ledgers
from orchestrator.verify.files import is_over
from trainables.values.errors import INTERRUPTED, SweepError
from trainables.values.workload import Workload

logger = logging.getLogger(__name__)


def run_sweep(settings: SweepSettings, *, resume: bool, as_json: bool, **stand_ins: Any) -> None:
    """Run and publish a sweep; `stand_ins` go to orchestrator.driver.sweep.run: `verdict_seeds`, and those of tests."""
    if settings.tracking_uri is not None:
        check_server(settings.tracking_uri)
    display = ProgressDisplay(settings, sweep_folder(settings.name) / "ledger.db", Console(stderr=True))
    writer = MlflowWriter(settings.name, ROOT)
    begin = monotonic()
    logger.info(f"sweep {settings.name}: space {settings.space.name}, base {settings.base_model}, data {settings.data}")

    def started(ledger: Ledger, workload: Workload) -> None:
        logger.info(f"rows: {_rows_read(ledger.fact('data_counts'))}; {workload.compute_dtype} arithmetic")
        logger.info(f"trials: {to_come(settings)}")
        for line in base_targets.coverage_lines(settings):
            logger.info(line)
        if workload.weights in ("random", "stand-in"):
            logger.info(f"base: {workload.base_caption}")
        if line := duration.text(settings, ROOT, ray_cluster.n_slots(settings)):
            logger.info(line)
        display.start()
        writer.start()
        ray_cluster.spare_mlflow()
        # as Ctrl-C: Ray's own handler, set when it started, prints the stack of its C++ and aborts
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))

    try:
        snapshot = sweep.run(settings, ROOT, resume=resume, started=started, **stand_ins)
        display.stop()
        from orchestrator.tracking.ending import end  # brings all figures; no bad input waits for them

        run_page = end(settings, ROOT, writer, monotonic() - begin, snapshot.interrupted)
    except KeyboardInterrupt:
        logger.info(f"interrupted; if it had begun, go on with: {command()} resume {settings.name}")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        display.stop()
        writer.stop()
    print_result(snapshot, run_page, as_json=as_json)
    refuse_unless_whole(snapshot)


def _rows_read(counts: Mapping[str, int]) -> str:
    """How many there are, and what became of the others by reason."""
    said = f"{counts['read']} read, {counts['train']} for training"
    for what, n in counts.items():
        if n and what.startswith(("dropped", "longer")):
            said += f"; {n} {what}"
    return said


def refuse_unless_whole(snapshot: SweepSnapshot) -> None:
    """End with the exit code of a sweep that did not come to what it was to come to.

    Raises:
        SweepError: it gave itself up, no trial completed, or a finalist could not be evaluated.
        Exit: it was interrupted.
    """
    resume = f"{command()} resume {snapshot.settings.name}"
    if snapshot.stopped:
        raise SweepError(f"stopped: {snapshot.stopped}; once that is mended: {resume}")
    if snapshot.interrupted:
        logger.info(f"interrupted; go on with: {resume}")
        raise typer.Exit(INTERRUPTED)
    if not any(trial.state == "completed" for trial in snapshot.trials):
        last = snapshot.trials[-1].reason if snapshot.trials else "none was started"
        raise SweepError(why_empty(snapshot) or f"no trial completed; the last reason: {last}")
    if failed := failed_evaluations(snapshot.trials, snapshot.settings):
        more = f" (and {len(failed) - 1} more, see above)" if len(failed) > 1 else ""
        raise SweepError(f"{failed[0]}{more}; to try again: {resume}")


def shown_if_finished(settings: SweepSettings, *, as_json: bool) -> bool:
    """Print a sweep of which nothing is left to do, and write nothing; False of any other."""
    folder, name = sweep_folder(settings.name), settings.name
    snapshot = ledgers.read(settings, folder) if (folder / "ledger.db").is_file() else None
    if snapshot is None or snapshot.workload is None or not is_over(snapshot):
        return False
    print_result(replace(snapshot, settings=settings), None, as_json=as_json)
    logger.info(f"sweep {name} is finished, nothing is left to run; what it came to: {command()} report {name}")
    if settings.tracking_uri is not None:
        logger.info(f"whether MLflow has all of it says: {command()} verify {name}")
    elif not has_whole_run(store_file(ROOT), str(snapshot.facts.get("id"))):
        logger.info(f"MLflow lacks some of it; complete it with: {command()} sync {name}")
    return True
