"""What a sweep does at its end: its files are written whole, and then what MLflow lacks; MLflow is not imported."""

import logging
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from orchestrator.analysis.moment import WRITING, Writing
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.ledger import Ledger
from orchestrator.report import outputs
from orchestrator.report.content import report_of
from orchestrator.report.digests import FILES, digests
from orchestrator.settings import SweepSettings, sweep_folder
from orchestrator.settings.command import command
from orchestrator.tracking.writer import MlflowWriter
from trainables.cost.timeline import Timeline

logger = logging.getLogger(__name__)


def write_files(snapshot: SweepSnapshot, ledger: Ledger) -> list[Path]:
    """Write front.json, trials.parquet, figures and report into the sweep's folder; returns them."""
    files = outputs.write(snapshot, report_of(snapshot), snapshot.folder)
    ledger.set_fact(FILES, digests(files, snapshot.folder))
    return files


def end(
    settings: SweepSettings,
    root: Path,
    writer: MlflowWriter,
    seconds: float,
    interrupted: bool,
    hurried: Callable[[], bool] = lambda: False,
) -> str | None:
    """Write a sweep's files, then what MLflow lacks, for as long as that answers.

    Args:
        seconds, interrupted, hurried: see MlflowWriter.finish.
    Returns:
        See orchestrator.tracking.publishing.publish.
    """
    path, timeline = sweep_folder(settings.name, root) / "ledger.db", Timeline()
    with closing(Ledger(path)) as ledger:
        snapshot = SweepSnapshot.of(settings, ledger).begun()
        _note(ledger, "writing figures")
        with timeline.span("writing figures"):
            files = write_files(snapshot, ledger)
        _note(ledger, "writing MLflow")
    with timeline.span("writing MLflow"):
        flushed = writer.finish(files, seconds, interrupted=interrupted, hurried=hurried)
    with closing(Ledger(path)) as ledger:
        ledger.set_fact(WRITING, None)
        ledger.keep_spans(timeline.take("driver"))
    if flushed.page is None:
        n_pending = len(snapshot.trials) - flushed.n_whole
        pending = f"{n_pending} of {len(snapshot.trials)} trials and the sweep's own run" if n_pending else "the run"
        logger.warning(
            "MLflow lacks %s (%s); complete it with: %s sync %s", pending, flushed.reason, command(), settings.name
        )
    return flushed.page


def _note(ledger: Ledger, phase: Writing) -> None:
    """Say what is written now, here and to all that show the sweep."""
    logger.info(phase)
    ledger.set_fact(WRITING, [phase, time.time()])
