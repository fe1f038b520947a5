"""A limit on how long a piece of work may take in this process."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TookTooLong(BaseException):
    """Work was broken off at its limit; no Exception, which the work itself might catch."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Break the block off after some seconds; a timer that was set before goes on after it.

    Only the main thread can be broken off: in any other there is no limit.

    Raises:
        TookTooLong: within the block, between two of Python's own steps.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def break_off(*_: object) -> None:
        raise TookTooLong

    handler = signal.signal(signal.SIGALRM, break_off)
    earlier = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *earlier)
