"""Work on a thread of its own, beside that of the thread which will want its result."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Beside(Generic[Result]):
    """A piece of work that begins at once. Nothing waits for it but `result`: not even the process at its end."""

    def __init__(self, work: Callable[[], Result], *, stays: bool = False) -> None:
        """
        Args:
            stays: the thread stays when the work is done: Linux ends a child that asked to die with its parent when
                the thread that started it ends (prctl(2), PR_SET_PDEATHSIG).
        """
        self._work = work
        self._stays = stays
        self._over = threading.Event()
        self._results: list[Result] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="beside", daemon=True).start()

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:
            self._error = error
        self._over.set()
        if self._stays:
            threading.Event().wait()

    @property
    def is_over(self) -> bool:
        """Whether it came to its end, good or bad."""
        return self._over.is_set()

    def result(self) -> Result:
        """What the work comes to; waits for it, and raises what it raised."""
        self._over.wait()
        if self._error is not None:
            raise self._error
        return self._results[0]
