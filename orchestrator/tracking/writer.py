"""The driver's hand on the process that keeps MLflow up to date; MLflow never stops a sweep, nor keeps it.

The ledger itself is the outbox. An outbox table would hold every change a second time and deliver each "at least
once": MLflow's calls carry no key by which a second delivery could be known, so one whose answer was lost would have
to be looked for in MLflow all the same. The projection (projection.py) does just that look, needs no message kept, and
is the same code for a sweep that runs, `sync`, and `verify --repair`.

It runs in a process of its own (writer_process.py) because a call of MLflow's client cannot be cut off from outside:
it waits 20 s for a locked SQLite store whatever it is told. A process can be killed at any moment: a call that was cut
off is looked for, and made again, by the next one.
"""

import json
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from select import select
from time import monotonic

from trainables.values.own_process import command_of, own_environment

STUCK_SECONDS = 60.0
"""After so long without a sign of life the process is taken for dead: many times what it needs to start."""
KILLED_SECONDS = 5.0
"""For a process that was killed to be gone; a disk that hangs can hold it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteResult:
    """What came of the last write.

    Attributes:
        page: of the sweep's run, None where not everything was written.
        reason: why not.
        n_whole: trials whose runs are written to the end.
    """

    page: str | None = None
    reason: str | None = None
    n_whole: int = 0


class MlflowWriter:
    """Keeps MLflow up to date while a sweep runs."""

    def __init__(self, name: str, root: Path) -> None:
        self._command = command_of("orchestrator.tracking.writer_process", name, str(root.resolve()))
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            env=own_environment(),
            stdin=subprocess.PIPE,  # its end, the driver's death included, ends the process
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is the driver's
        )

    def stop(self) -> None:
        """At once, wherever it is."""
        if self._process is not None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.communicate(timeout=KILLED_SECONDS)
            self._process = None

    def finish(
        self,
        files: Sequence[Path],
        seconds: float,
        *,
        interrupted: bool,
        hurried: Callable[[], bool] = lambda: False,
    ) -> WriteResult:
        """Write what is left, and the files; returns soon where MLflow does not answer.

        Args:
            files: of the sweep's folder, see orchestrator.report.outputs.
            seconds: that the sweep took; a twentieth of it, at least two minutes, is all that a slow store is given.
            interrupted: whether the sweep is still to go on.
            hurried: asked again and again: whether somebody waits for the end, so that a slow store is given seconds.
        """
        if self._process is None:
            return WriteResult(reason="it was not started")
        order = {"files": [*map(str, files)], "seconds": seconds, "interrupted": interrupted}
        try:
            print(json.dumps(order), file=self._process.stdin, flush=True)
            return self._answer(hurried)
        except (OSError, ValueError) as error:  # it is dead, or was killed while it spoke
            return WriteResult(reason=f"its writer ended: {type(error).__name__}")
        finally:
            self.stop()

    def _answer(self, hurried: Callable[[], bool]) -> WriteResult:
        out = self._process.stdout  # type: ignore[union-attr]
        last, told = monotonic(), False
        while monotonic() - last < STUCK_SECONDS:
            if hurried() and not told:
                print(file=self._process.stdin, flush=True)  # type: ignore[union-attr]
                told = True
            if not select([out], [], [], 1.0)[0]:  # type: ignore[list-item]
                continue
            line = out.readline()  # type: ignore[union-attr]
            if not line:
                return WriteResult(reason="its writer ended")
            if line.strip():
                return WriteResult(**json.loads(line))
            last = monotonic()
        return WriteResult(reason=f"its writer gave no sign of life for {STUCK_SECONDS:.0f} s")
