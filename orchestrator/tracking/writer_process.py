"""The process that writes MLflow while a sweep runs: `python -m orchestrator.tracking.writer_process NAME ROOT`

It brings MLflow up to date every few seconds, until a line on its standard input (see writer.py) has it
write what is left and answer with one JSON object; a second line asks for haste, the end of its standard input ends
it at once. While it writes what is left a second thread watches: where a call keeps the process idle for a while, that
ends it, with an answer.
"""

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import clock_gettime, monotonic, pthread_getcpuclockid, sleep
from typing import Any

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.ledger import Ledger
from orchestrator.security.redaction import reason_of
from orchestrator.settings import SweepSettings, stored, sweep_folder
from orchestrator.tracking.writer import WriteResult

SYNC_SECONDS = 5.0
REST_SHARE = 10
"""Times the length of the last write to rest before the next, so that writing takes at most a tenth of a core."""
MAX_REST_SECONDS = 20.0
"""With a write that redraws the figures this keeps them under 30 s old."""
PATIENCE_SECONDS, SHORT_PATIENCE_SECONDS = 10.0, 3.0
"""How long the process may sit idle at the end: over a store that has answered so far,
and over one that failed last time."""
WORK_SECONDS = 0.1
"""Of the writing thread's processor time; less in so long is idle. The clock says little on a busy machine."""
MIN_FINISH_SECONDS, FINISH_SHARE = 120.0, 0.05
"""The most that the end may take of a store that answers each call: so much, or that share of the sweep's time."""
HURRIED_SECONDS = 10.0
"""The most that it may take from when haste is asked for."""


class Writer:
    """Writes one sweep's ledger into MLflow, again and again.

    Attributes:
        fault: why the last write failed; None where it did not.
    """

    def __init__(self, settings: SweepSettings, root: Path) -> None:
        self._settings = settings
        self._root = root
        self._ledger = Ledger(sweep_folder(settings.name, root) / "ledger.db", read_only=True)
        self._tracker: Any = None
        self.fault: str | None = None

    @property
    def n_whole(self) -> int:
        """Trials whose runs are written to the end."""
        return self._tracker.n_whole if self._tracker else 0

    def write(self, finish: Callable[[Any], None] | None = None) -> bool:
        """Write what the ledger holds and MLflow does not, and `finish` it; returns whether that went well."""
        try:
            self._look()
            (finish or (lambda tracker: tracker.sync(live=True)))(self._tracker)
            self.fault = None
        except Exception as error:
            self.fault = reason_of(error, self._settings.tracking_uri)
        return self.fault is None

    def _look(self) -> None:
        """At what the ledger holds now, in a copy: this process is killed at its end, and holds nothing of it open."""
        from orchestrator.tracking.projection import Tracker  # with MLflow: once this process has made room for trials

        self._ledger.read_again()
        if self._tracker is None:
            self._tracker = Tracker(self._settings, self._ledger, self._root)
        elif self.fault:
            self._tracker.look()

    def finish(self, files: list[str], interrupted: bool) -> WriteResult:
        """Write everything, to the end."""

        def finish(tracker: Any) -> None:
            snapshot = SweepSnapshot.of(self._settings, self._ledger).begun()
            tracker.finish(snapshot, [Path(file) for file in files], interrupted=interrupted)

        done = self.write(finish)
        page = self._tracker.page if done else None
        return WriteResult(page=page, reason=self.fault, n_whole=self.n_whole)


def worked_seconds() -> float:
    """Processor time of the thread that writes; others, as MLflow's own monitor, may work over a store that is away."""
    return clock_gettime(pthread_getcpuclockid(threading.main_thread().ident or 0))


def answer(flushed: WriteResult) -> None:
    """Say how it went, and end, whatever other threads do."""
    print(json.dumps(asdict(flushed)), flush=True)
    os._exit(0)


def heed(hurried: threading.Event) -> None:
    """Take further lines for a wish for haste; end the process with the driver."""
    while sys.stdin.readline():
        hurried.set()
    os._exit(0)


def listen(orders: "queue.Queue[dict[str, Any]]", writer: Writer, *, hurried_seconds: float = HURRIED_SECONDS) -> None:
    """Hand on the order to finish, then watch that it comes to an end; ends the process with the driver."""
    line = sys.stdin.readline()
    if not line:
        os._exit(0)
    order, hurried = json.loads(line), threading.Event()
    patience = SHORT_PATIENCE_SECONDS if writer.fault else PATIENCE_SECONDS
    orders.put(order)
    threading.Thread(target=heed, args=(hurried,), daemon=True).start()
    begin, limit = monotonic(), max(MIN_FINISH_SECONDS, FINISH_SHARE * order["seconds"])
    quiet_since, worked = begin, worked_seconds()
    while True:
        sleep(0.1)
        print(flush=True)
        if worked_seconds() - worked > WORK_SECONDS:
            quiet_since, worked = monotonic(), worked_seconds()
        if monotonic() - quiet_since > patience:
            fault = writer.fault or f"it has not answered for {patience:.0f} s"
            answer(WriteResult(reason=fault, n_whole=writer.n_whole))
        if hurried.is_set():
            limit = min(limit, monotonic() - begin + hurried_seconds)
            hurried.clear()
        if monotonic() - begin > limit:
            answer(WriteResult(reason=f"writing took longer than {limit:.0f} s", n_whole=writer.n_whole))


def main(name: str, root: Path) -> None:
    os.nice(10)  # trials come first
    settings = stored.load(sweep_folder(name, root))
    writer = Writer(settings, root)
    orders: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=listen, args=(orders, writer), daemon=True).start()
    rest = SYNC_SECONDS
    while True:
        try:
            order = orders.get(timeout=rest)
        except queue.Empty:
            begin = monotonic()
            writer.write()
            rest = max(SYNC_SECONDS, REST_SHARE * (monotonic() - begin) if not writer.fault else 0)
            rest = min(rest, MAX_REST_SECONDS)
        else:
            answer(writer.finish(order["files"], order["interrupted"]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
