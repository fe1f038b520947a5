"""What keeps MLflow up to date while a sweep runs and at its end; MLflow never stops a sweep."""

import threading
from collections.abc import Callable
from pathlib import Path

from orchestrator import report
from orchestrator.ledger import Ledger
from orchestrator.settings import SweepSettings, sweep_folder
from orchestrator.sweep import result_of
from orchestrator.tracking import Tracker
from orchestrator.tracking_store import UI_PORT, page_of
from trainables.errors import SweepError

SYNC_SECONDS = 5.0


class Follower:
    """Keeps MLflow up to date from a thread of its own while a sweep runs; never stops the sweep."""

    def __init__(self, settings: SweepSettings, root: Path) -> None:
        self._settings = settings
        self._root = root
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
        self.fault: str | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._stop.set()
            self._thread.join()

    def _follow(self) -> None:
        ledger = Ledger(sweep_folder(self._settings.name, self._root) / "ledger.db")
        try:
            tracker = None
            while not self._stop.wait(SYNC_SECONDS):
                try:
                    tracker = tracker or Tracker(self._settings, ledger, self._root)
                    tracker.sync(live=True)
                    self.fault = None
                except Exception as error:
                    self.fault = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        finally:
            ledger.close()


def publish(settings: SweepSettings, root: Path, say: Callable[[str], None], *, interrupted: bool) -> str | None:
    """Write a sweep's files and its MLflow runs, whole.

    Returns:
        The page of the parent run under `make ui`, or the run's id on another server; None where MLflow
        could not be written (said through `say`; `qlora-sweep sync` does it later).
    """
    folder = sweep_folder(settings.name, root)
    ledger = Ledger(folder / "ledger.db")
    try:
        result = result_of(settings, ledger, interrupted=interrupted)
        from orchestrator import outputs

        files = outputs.write(result, report.read(settings, ledger), folder)
        tracker = Tracker(settings, ledger, root)
        tracker.finish(result, files)
    except SweepError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        say(f"MLflow was not written ({type(error).__name__}: {reason}); later: qlora-sweep sync {settings.name}")
        return None
    finally:
        ledger.close()
    page = page_of(tracker.experiment_id, tracker.run_id)
    return f"http://127.0.0.1:{UI_PORT}/{page}" if settings.tracking_uri is None else f"run {tracker.run_id}"
