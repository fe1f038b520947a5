"""A sweep run to its end, its files written and MLflow brought up to date, while something shows how far it is."""

import importlib
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from time import monotonic
from typing import Any, Protocol

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.analysis.status import to_come
from orchestrator.analysis.verdict import failed_evaluations
from orchestrator.api.interrupts import ended_in_order
from orchestrator.cluster import ray_cluster
from orchestrator.driver import base_targets, duration, sweep
from orchestrator.driver.plan import why_empty, without_4_bits
from orchestrator.ledger import Ledger
from orchestrator.settings import ROOT, SweepSettings
from orchestrator.settings.command import command
from orchestrator.tracking.server import check_server
from orchestrator.tracking.writer import MlflowWriter
from trainables.cost.device import has_spare_cores
from trainables.values.errors import Interrupted, SweepError
from trainables.values.workload import Workload

logger = logging.getLogger(__name__)

DRAWS = ("orchestrator.tracking.ending", "optuna.importance")
"""What takes seconds to import and writes a sweep's files."""


class Display(Protocol):
    """Shows a sweep from its ledger, which is there when it starts; `stop` may be called twice, or without a start."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


def run_published(
    settings: SweepSettings,
    *,
    resume: bool,
    display: Display,
    answered: Callable[[SweepSnapshot], object] = lambda snapshot: None,
    again: Callable[[], Any] | None = None,
    notice: str | None = None,
    **stand_ins: Any,
) -> tuple[SweepSnapshot, str | None]:
    """Run and publish a sweep.

    Args:
        answered: called with the sweep as it ended, before anything is written of it.
        again: what a second Ctrl-C does, see orchestrator.api.interrupts.
        notice: said once the sweep's inputs are sound.
        stand_ins: go to orchestrator.driver.sweep.run: `verdict_seeds`, and those of tests.
    Returns:
        The sweep as it ended, and its MLflow page; None where MLflow lacks some of it.
    Raises:
        KeyboardInterrupt, SweepError: see orchestrator.driver.sweep.run; the first also where it is interrupted twice.
    """
    _say_what_was_asked(settings)
    writer, begin = MlflowWriter(settings.name, ROOT), monotonic()

    def started(ledger: Ledger, workload: Workload) -> None:
        _say_what_is_run(settings, ledger, workload, notice)
        display.start()
        writer.start()
        ray_cluster.spare_mlflow()
        interrupts.begin()

    with ended_in_order(again) as interrupts, ExitStack() as stops:
        stops.callback(writer.stop)
        stops.callback(display.stop)  # before the writer
        snapshot = sweep.run(settings, ROOT, resume=resume, started=started, meanwhile=_import_what_draws, **stand_ins)
        answered(snapshot)
        interrupts.tasks_ended()
        from orchestrator.tracking.ending import end  # brings all figures; no bad setting waits for them

        return snapshot, end(settings, ROOT, writer, monotonic() - begin, snapshot.interrupted, interrupts.asked)


def _import_what_draws() -> None:
    """So that a sweep's end need not wait for it; on few cores workers' imports would wait instead."""
    if has_spare_cores():
        for module in DRAWS:
            importlib.import_module(module)


def _say_what_was_asked(settings: SweepSettings) -> None:
    """One line, where its MLflow server is none that cannot be spoken to."""
    if settings.tracking_uri is not None:
        check_server(settings.tracking_uri)
    logger.info(f"sweep {settings.name}: space {settings.space.name}, base {settings.base_model}, data {settings.data}")


def _say_what_is_run(settings: SweepSettings, ledger: Ledger, workload: Workload, notice: str | None) -> None:
    if notice:
        logger.info(notice)
    logger.info(f"rows: {_rows_read(ledger.fact('data_counts'))}; {workload.compute_dtype} arithmetic")
    logger.info(f"trials: {to_come(settings)}")
    if line := without_4_bits(settings):
        logger.info(line)
    for line in base_targets.coverage_lines(settings):
        logger.info(line)
    if workload.weights in ("random", "stand-in"):
        logger.info(f"base: {workload.base_caption}")
    if line := duration.text(settings, ROOT, ray_cluster.n_slots(settings)):
        logger.info(line)


def _rows_read(counts: Mapping[str, int]) -> str:
    """How many there are, and what became of the others by reason."""
    said = f"{counts['read']} read, {counts['train']} for training"
    for what, n in counts.items():
        if n and what.startswith(("dropped", "longer")):
            said += f"; {n} {what}"
    return said


def fault_of(snapshot: SweepSnapshot) -> SweepError | None:
    """Why a sweep that ended did not come to what it was to come to; None where it did."""
    resume = f"{command()} resume {snapshot.settings.name}"
    if snapshot.stopped:
        return SweepError(f"stopped: {snapshot.stopped}; once that is mended: {resume}")
    if snapshot.interrupted:
        return Interrupted(f"go on with: {resume}")
    if not any(trial.state == "completed" for trial in snapshot.trials):
        last = snapshot.trials[-1].reason if snapshot.trials else "none was started"
        return SweepError(why_empty(snapshot) or f"no trial completed; the last reason: {last}")
    if failed := failed_evaluations(snapshot.trials, snapshot.settings):
        more = f" (and {len(failed) - 1} more, see above)" if len(failed) > 1 else ""
        return SweepError(f"{failed[0]}{more}; to try again: {resume}")
    return None
