"""Whether the cluster under a running sweep still lives: without it, Ray Tune waits for ever or dies without a word."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray

logger = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
PATIENCE_SECONDS = 20.0
"""Without an answer for so long, the cluster is given up; Ray itself ends the process after a minute."""
BUSY_TIMES = 3
"""So many times that long where it takes the question and does not answer: it may be busy, or it may hang."""
GRACE_SECONDS = 20.0
"""The main thread's time to come to its end in good order; it may wait for an answer that never comes."""
_watches: "list[Heartbeat]" = []
"""Of this process, now."""


class Heartbeat:
    """Asks again and again whether something lives, on a thread of its own; interrupts the main one when it does not.

    A second thread puts the question, which may never come back.

    Attributes:
        lost: whether it was given up.
    """

    def __init__(self, is_alive: Callable[[], bool], last_words: str, last_act: Callable[[], object]) -> None:
        self._is_alive = is_alive
        self._last_words = last_words
        self._last_act = last_act
        self._left = threading.Event()
        self._answer: bool | None = None  # None where there is none since the last look
        self.lost = False

    def watch(self, *, every: float, patience: float, grace: float) -> None:
        """Until `leave`, or until the main thread was interrupted; ends the process where that is of no use."""
        threading.Thread(target=self._ask, args=(every,), daemon=True, name="heartbeat's question").start()
        silent = 0.0
        while silent < patience:
            if self._left.wait(every):
                return
            answer, self._answer = self._answer, None
            silent = 0.0 if answer else silent + every / (BUSY_TIMES if answer is None else 1)
        self.lost = True
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # also where it sleeps
        if not self._left.wait(grace):
            logger.error("error: %s", self._last_words)
            try:
                self._last_act()
            finally:
                os._exit(1)

    def _ask(self, every: float) -> None:
        while not self._left.wait(every):
            self._answer = self._is_alive()

    def leave(self) -> None:
        """Stop asking."""
        self._left.set()


@contextmanager
def watched(
    last_words: str,
    *,
    last_act: Callable[[], object] = lambda: None,
    is_alive: Callable[[], bool] | None = None,
    every: float = EVERY_SECONDS,
    patience: float = PATIENCE_SECONDS,
    grace: float = GRACE_SECONDS,
) -> Iterator[Heartbeat]:
    """Watch the connected Ray cluster, or what else is given, while the block runs on the main thread.

    Args:
        last_words: printed where the process has to be ended from outside.
        last_act: called there, on the watching thread.
        every, patience, grace: seconds.
    """
    heartbeat = Heartbeat(is_alive or ray_is_alive(), last_words, last_act)
    pace = {"every": every, "patience": patience, "grace": grace}
    threading.Thread(target=heartbeat.watch, kwargs=pace, daemon=True, name="heartbeat").start()
    _watches.append(heartbeat)
    try:
        yield heartbeat
    finally:
        _watches.remove(heartbeat)
        heartbeat.leave()


def has_interrupted() -> bool:
    """Whether an interrupt of the main thread comes of a cluster that was given up: nobody asked for it."""
    return any(heartbeat.lost for heartbeat in _watches)


def ray_is_alive() -> Callable[[], bool]:
    """Asks the connected cluster's head whether this driver's own node is alive."""
    if ray.util.client.ray.is_connected():  # such a connection breaks with an error of its own
        return lambda: True
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    here = context.get_node_id()

    def is_alive() -> bool:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=EVERY_SECONDS).close()
        except OSError:
            return False
        return any(node["Alive"] and node["NodeID"] == here for node in ray.nodes())

    return is_alive
