"""Ctrl-C and SIGTERM while trials run: the first ends the sweep in order, which is said at once; the next kills it.

So does the first, where the tasks are not given up soon after it: no worker, and no part of Ray, holds the end.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

ENDS_TUNE = signal.SIGUSR1
"""Ray Tune, while it runs, takes this for the wish to end it between two of its steps."""
NOT_TUNES = {"TUNE_DISABLE_SIGINT_HANDLER": "1"}
"""Else Ray Tune puts its own handler of Ctrl-C, which says nothing, in the place of this one."""
STOPPING = "stopping: trials at work are given up, what has ended is kept and written; once more kills"
HURRYING = "stopping: what is being written is brought to an end soon; once more kills"
PATIENCE_SECONDS = 30.0
"""For the tasks to be given up: Ray Tune waits 10 s for a worker that is in the middle of a step."""


class Interrupts:
    """What a process that runs a sweep does at both signals, from `begin` on.

    Args:
        again: called at the second signal; by default it is raised as a KeyboardInterrupt.
        patience: seconds from the first one until the tasks must have ended; then it counts as a second one.

    Attributes:
        before: what answers them outside.
        over: set when all tasks have ended or were given up.
    """

    def __init__(self, again: Callable[[], Any] | None = None, patience: float = PATIENCE_SECONDS) -> None:
        self._again = again
        self._patience = patience
        self._asked_at: float | None = None  # no threading.Event, whose lock is not for handlers of signals
        self.over = threading.Event()
        self.before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def asked(self) -> bool:
        """Whether there was one."""
        return self._asked_at is not None

    def begin(self) -> None:
        """Trials are about to start."""
        if threading.current_thread() is threading.main_thread():
            threading.Thread(target=self._watch, name="interrupts", daemon=True).start()
            self._listen()

    def tasks_ended(self) -> None:
        """What is left to do waits for no worker: from now on the first signal asks for haste, and ends nothing."""
        self.over.set()
        if threading.current_thread() is threading.main_thread():
            self._listen()

    def _listen(self) -> None:
        """In place of Ray's own answer to SIGTERM, its stack and an abort; once more when Ray, left, gives it up."""
        signal.signal(signal.SIGTERM, self._stop)
        if self.before[signal.SIGINT] != signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.asked():
            self._again() if self._again else signal.default_int_handler(number, frame)
        self._asked_at = monotonic()
        writing = self.over.is_set()
        with suppress(OSError, RuntimeError):  # standard error is gone, or this thread was just writing to it
            logger.warning(HURRYING if writing else STOPPING)
        if writing:
            return
        if callable(signal.getsignal(ENDS_TUNE)):
            signal.raise_signal(ENDS_TUNE)
        else:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        """Take the first signal for a second one where the tasks do not end."""
        while not self.over.wait(0.2):
            if self._asked_at is not None and monotonic() - self._asked_at > self._patience:
                with suppress(OSError):
                    logger.error(f"trials were not given up in {self._patience:g} s: killed")
                if self._again:
                    self._again()
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                return


@contextmanager
def ended_in_order(again: Callable[[], Any] | None = None, patience: float = PATIENCE_SECONDS) -> Iterator[Interrupts]:
    """Inside, this process answers both signals in order, from when `begin` is called; afterwards all is as it was.

    A SIGINT that is ignored, as a shell's background jobs have it, stays so. Only the main thread can do this; in
    another nothing happens. Arguments: see Interrupts.
    """
    interrupts = Interrupts(again, patience)
    tunes = signal.getsignal(ENDS_TUNE)
    os.environ.update(NOT_TUNES)
    try:
        yield interrupts
    finally:
        interrupts.over.set()
        if threading.current_thread() is threading.main_thread():
            for number, handler in (interrupts.before | {ENDS_TUNE: tunes}).items():
                signal.signal(number, handler)
