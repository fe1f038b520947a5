"""A sweep's files and its MLflow runs, written whole: at its end, by `sync`, and by a repair."""

import logging
from pathlib import Path

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.ledger import Ledger
from orchestrator.report.content import report_of
from orchestrator.report.digests import FILES, digests
from orchestrator.security.redaction import reason_of
from orchestrator.settings import SweepSettings, sweep_folder
from orchestrator.settings.command import command
from orchestrator.tracking.projection import Tracker
from orchestrator.tracking.store import UI_PORT, page_of
from orchestrator.tracking.writer import MlflowWriter
from trainables.values.errors import SweepError

logger = logging.getLogger(__name__)


def write_files(snapshot: SweepSnapshot, ledger: Ledger) -> list[Path]:
    """Write front.json, trials.parquet, figures and report into the sweep's folder; returns them."""
    from orchestrator.report import outputs

    files = outputs.write(snapshot, report_of(snapshot), snapshot.folder)
    ledger.set_fact(FILES, digests(files, snapshot.folder))
    return files


def end(settings: SweepSettings, root: Path, writer: MlflowWriter, seconds: float, interrupted: bool) -> str | None:
    """What a sweep does at its end: write its files, then what MLflow lacks, for as long as that answers.

    Args:
        seconds: that the sweep took.
    Returns:
        See `publish`.
    """
    ledger = Ledger(sweep_folder(settings.name, root) / "ledger.db")
    try:
        snapshot = SweepSnapshot.of(settings, ledger).begun()
        files = write_files(snapshot, ledger)
    finally:
        ledger.close()
    flushed = writer.finish(files, seconds, interrupted=interrupted)
    if flushed.page is None:
        pending = f"{len(snapshot.trials) - flushed.n_whole} of {len(snapshot.trials)} trials and the sweep's own run"
        logger.warning(
            "MLflow lacks %s (%s); complete it with: %s sync %s", pending, flushed.reason, command(), settings.name
        )
    return flushed.page


def publish(settings: SweepSettings, root: Path, *, interrupted: bool) -> str | None:
    """Write a sweep's files and its MLflow runs, whole.

    Returns:
        The page of the parent run under `make ui`, or the run's id on another server; None where MLflow
        could not be written (which is logged; `qlora-sweep sync` does it later).
    """
    ledger = Ledger(sweep_folder(settings.name, root) / "ledger.db")
    try:
        snapshot = SweepSnapshot.of(settings, ledger).begun()
        files = write_files(snapshot, ledger)
        tracker = Tracker(settings, ledger, root)
        tracker.finish(snapshot, files, interrupted=interrupted)
    except SweepError:
        raise
    except Exception as error:
        reason = reason_of(error, settings.tracking_uri)
        logger.warning("MLflow was not written (%s); later: %s sync %s", reason, command(), settings.name)
        return None
    finally:
        ledger.close()
    return page_text(settings, tracker)


def page_text(settings: SweepSettings, tracker: Tracker) -> str:
    """Where to look at the sweep's run."""
    page = page_of(tracker.experiment_id, tracker.run_id)
    return f"http://127.0.0.1:{UI_PORT}/{page}" if settings.tracking_uri is None else f"run {tracker.run_id}"
