"""A sweep's files and its MLflow runs, written whole: by `sync`, and by a repair."""

import logging
from pathlib import Path

from orchestrator.analysis.moment import WRITING
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.ledger import Ledger
from orchestrator.security.redaction import reason_of
from orchestrator.settings import SweepSettings, sweep_folder
from orchestrator.settings.command import command
from orchestrator.tracking.ending import write_files
from orchestrator.tracking.projection import Tracker
from trainables.values.errors import SweepError

logger = logging.getLogger(__name__)


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
        if snapshot.facts.get(WRITING):  # of a process that was killed while it wrote
            ledger.set_fact(WRITING, None)
    except SweepError:
        raise
    except Exception as error:
        reason = reason_of(error, settings.tracking_uri)
        logger.warning("MLflow was not written (%s); later: %s sync %s", reason, command(), settings.name)
        return None
    finally:
        ledger.close()
    return tracker.page
