"""Threads that compile kernels ahead, beside what else a process does, and rest while a step is timed."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Condition, Thread, main_thread

N_CORES_EACH = 4
"""Cores of the machine for each thread."""
MAX_THREADS = 4
MAX_WAIT_SECONDS = 30.0
"""For jobs at work: one that never ends must not keep a device for good."""


class Compiler:
    """Does jobs in a few threads, each job once; what fails in one is left to where its kernel is used.

    The threads end when there is nothing left to do, or the process ends.
    """

    def __init__(self, jobs: Iterable[Callable[[], object]]) -> None:
        self._jobs = iter(list(jobs))
        self._changed = Condition()
        self._n_at_work, self._rests = 0, False
        n_threads = max(1, min(MAX_THREADS, (os.cpu_count() or 1) // N_CORES_EACH))
        self._threads = [Thread(target=self._work, name="compiler") for _ in range(n_threads)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                with suppress(Exception):
                    job()
            finally:
                with self._changed:
                    self._n_at_work -= 1
                    self._changed.notify_all()

    def _next(self) -> Callable[[], object] | None:
        """A job, once none rest; None where none is left, or the process ends."""
        with self._changed:
            while self._rests and main_thread().is_alive():
                self._changed.wait(timeout=1.0)
            job = next(self._jobs, None) if main_thread().is_alive() else None
            self._n_at_work += job is not None
            return job

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Inside, no job is begun; those at work have ended, but for one that takes longer than MAX_WAIT_SECONDS."""
        try:
            with self._changed:
                self._rests = True
                self._changed.wait_for(lambda: not self._n_at_work, timeout=MAX_WAIT_SECONDS)
            yield
        finally:
            with self._changed:
                self._rests = False
                self._changed.notify_all()

    def wait(self) -> None:
        """Until all is done."""
        for thread in self._threads:
            thread.join()
