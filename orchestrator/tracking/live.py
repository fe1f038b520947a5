"""What a sweep's own run in MLflow shows while trials come in: its figures, and what the machine does."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.figures import gallery
from orchestrator.tracking.client import SystemMetricsMonitor

FIGURES_SECONDS = 15.0
"""At least so long between two drawings; with the time of a drawing and of a sync this keeps them under 30 s old."""
MACHINE_SECONDS = 10.0
"""Between two samples of what the machine does."""


class Live:
    """Keeps the figures up to date, drawn when a trial has completed since the last time, and watches the machine.

    Of the pictures only the front's is drawn anew: all take several times as long as the page, which has them all.
    Nothing is written into the sweep's folder, which is the driver's.

    Args:
        client: an MlflowClient.
        clock: seconds.
    Attributes:
        has_front: whether the run has a picture of the front from here.
    """

    def __init__(self, client: Any, run_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._run_id = run_id
        self._clock = clock
        self._next = 0.0
        self._drawn: frozenset[tuple[str, bool]] = frozenset()
        self._monitor: Any = None
        self.has_front = False

    def update(self, snapshot: SweepSnapshot) -> bool:
        """Returns whether figures were logged: not where nothing is new or the last time is not long ago."""
        if self._monitor is None:
            self._monitor = machine_monitor(self._client.tracking_uri, self._run_id)
        known = frozenset((t.key, t.similarity is not None) for t in snapshot.trials if t.state == "completed")
        if known == self._drawn or self._clock() < self._next:
            return False
        found = gallery.of_sweep(snapshot)
        self._client.log_text(self._run_id, gallery.page(snapshot, found), gallery.PAGE)
        front = gallery.front(snapshot, found)
        if front:
            options = {"dpi": gallery.FRONT_DOTS_PER_INCH}
            self._client.log_figure(self._run_id, front, gallery.FRONT_FILE, save_kwargs=options)
            self.has_front = True
        self._drawn = known
        self._next = self._clock() + FIGURES_SECONDS
        return True


def machine_monitor(uri: str, run_id: str, seconds: float = MACHINE_SECONDS) -> Any:
    """MLflow's own, of CPU, memory, disk, network and GPUs where the driver runs; it ends when the run does."""
    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # a store that is away is said elsewhere
    monitor = SystemMetricsMonitor(run_id, sampling_interval=seconds, resume_logging=True, tracking_uri=uri)
    monitor.start()
    return monitor


def log_files(client: Any, run_id: str, files: Sequence[Path]) -> None:
    """Log files of a sweep's folder as artifacts, in the same places."""
    for path in files:
        folder = gallery.FOLDER if path.parent.name == gallery.FOLDER else None
        client.log_artifact(run_id, str(path), folder)
