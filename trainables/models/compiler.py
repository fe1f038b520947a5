"""Threads that compile kernels ahead, beside what else a process does, and rest while a step is timed."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Event, Lock, Thread, main_thread

N_CORES_EACH = 4
"""Cores of the machine for each thread."""
MAX_THREADS = 4


class Compiler:
    """Does jobs in a few threads, each job once; what fails in one is left to where its kernel is used.

    The threads end when there is nothing left to do, or the process ends.
    """

    def __init__(self, jobs: Iterable[Callable[[], object]]) -> None:
        self._jobs = iter(list(jobs))
        self._goes_on = Event()
        self._goes_on.set()
        n_threads = max(1, min(MAX_THREADS, (os.cpu_count() or 1) // N_CORES_EACH))
        self._busy = [Lock() for _ in range(n_threads)]
        self._threads = [Thread(target=self._work, args=(busy,), name="compiler") for busy in self._busy]
        for thread in self._threads:
            thread.start()

    def _work(self, busy: Lock) -> None:
        while main_thread().is_alive():
            if not self._goes_on.wait(timeout=1.0):
                continue  # the process may have ended
            with busy:
                job = next(self._jobs, None)
                if job is None:
                    return
                with suppress(Exception):
                    job()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Inside, no job is done; it begins when those at work, a second each, have ended."""
        self._goes_on.clear()
        try:
            with ExitStack() as at_rest:
                for busy in self._busy:
                    at_rest.enter_context(busy)
                yield
        finally:
            self._goes_on.set()

    def wait(self) -> None:
        """Until all is done."""
        for thread in self._threads:
            thread.join()
