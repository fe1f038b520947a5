"""Notes what a process does when: loading bases, capturing, measuring cost, training, comparing, evaluating.

It reads the host's clock and waits for no device: work that is queued on a GPU counts where the process waits for it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from trainables.values.spans import Span

WorkerPhase = Literal["imports", "base", "capture", "cost key", "training", "comparison", "test evaluation"]
"""imports: of PyTorch and all else; base: read, quantized and warmed up; capture: of CUDA graphs; cost key: memory and
time of full batches; training: with the held-out loss at each rung; comparison: of a 4-bit trial with its baseline."""


class Timeline:
    """The spans of this process that nobody has taken yet."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._noted: list[tuple[str, float, float]] = []

    @contextmanager
    def span(self, phase: str) -> Iterator[None]:
        """All that happens inside is of this phase; what ends by an error is noted too."""
        began = self._clock()
        try:
            yield
        finally:
            self._noted.append((phase, began, self._clock()))

    def take(self, process: str) -> tuple[Span, ...]:
        """What was noted since the last time, under the name of the process."""
        noted, self._noted = self._noted, []
        return tuple(Span(process=process, phase=phase, began=began, ended=ended) for phase, began, ended in noted)
