"""A sweep's table under a notebook's cell, drawn again for as long as the sweep runs."""

import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.api.opened import Sweep

REFRESH_SECONDS = 1.0
LAST_VIEW_SECONDS = 10.0
"""For what is shown last; a notebook that takes nothing more holds nothing else."""


class LiveTable:
    """Shows a running sweep from a thread of its own; outside a notebook it shows nothing."""

    def __init__(self, sweep: "Sweep") -> None:
        self._sweep = sweep
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="live table", daemon=True)
        self._handle: Any = None

    def start(self) -> None:
        if in_notebook():
            from IPython.display import display

            self._handle = display(self._sweep, display_id=True)
            self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(LAST_VIEW_SECONDS)

    def _refresh(self) -> None:
        over = False
        while not over:
            over = self._over.wait(REFRESH_SECONDS)
            self._handle.update(self._sweep)  # once more at the end, so that the last state stands


def in_notebook() -> bool:
    """Whether a notebook's kernel runs this process: IPython on a terminal draws no table."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None
