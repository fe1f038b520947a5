"""Ctrl-C and SIGTERM while trials run: the first ends the sweep in order, which is said at once; the next kills it."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

ENDS_TUNE = signal.SIGUSR1
"""Ray Tune, while it runs, takes this for the wish to end it between two of its steps."""
NOT_TUNES = {"TUNE_DISABLE_SIGINT_HANDLER": "1"}
"""Else Ray Tune puts its own handler of Ctrl-C, which says nothing, in the place of this one."""
STOPPING = "stopping: trials at work are given up, what has ended is kept and written; once more kills"


@contextmanager
def ended_in_order(again: Callable[[], Any] | None = None) -> Iterator[Callable[[], None]]:
    """Yields what makes this process answer both signals so, from when trials begin; afterwards all is as it was.

    A SIGINT that is ignored, as a shell's background jobs have it, stays so. Only the main thread can do this; in
    another nothing happens.

    Args:
        again: called at the second signal; by default it is raised as a KeyboardInterrupt.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    asked = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            again() if again else signal.default_int_handler(number, frame)
        asked.set()
        logger.warning(STOPPING)
        if callable(signal.getsignal(ENDS_TUNE)):
            signal.raise_signal(ENDS_TUNE)
        else:
            raise KeyboardInterrupt

    def begin() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, stop)  # Ray's own, there since it started, prints its C++ stack and aborts
            if before[signal.SIGINT] != signal.SIG_IGN:
                signal.signal(signal.SIGINT, stop)

    os.environ.update(NOT_TUNES)
    try:
        yield begin
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
