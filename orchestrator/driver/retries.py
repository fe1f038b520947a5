"""What is not a trial's own doing is tried again, a few times and not at once. Pure."""

from collections.abc import Callable

from orchestrator.ledger.task import TaskFault, TaskName

BACK_OFF_SECONDS = (2.0, 10.0)
"""Pause before a task is tried again, for the first time, for the second; it is not tried more often."""
MAX_FAILED_SHARE = 0.3
MIN_FAILED = 5
"""A sweep stops when more than this share of its trials failed, and at least so many."""


class Retries:
    """Which tasks are tried again, and when."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._n_lost: dict[TaskName, int] = {}
        self._due_at: dict[TaskName, float] = {}

    def again(self, task: TaskName, fault: TaskFault) -> bool:
        """A task was given up; returns whether it is to be tried again, once `is_due`."""
        if fault.kind == "incompatible node":  # it never began; the driver soon knows the node and places nothing there
            self._due_at[task] = self._clock() + BACK_OFF_SECONDS[0]
            return True
        n_lost = self._n_lost[task] = self._n_lost.get(task, 0) + 1
        if fault.is_own or n_lost > len(BACK_OFF_SECONDS):
            return False
        self._due_at[task] = self._clock() + BACK_OFF_SECONDS[n_lost - 1]
        return True

    def n_lost(self, task: TaskName) -> int:
        """How often it was given up."""
        return self._n_lost.get(task, 0)

    def is_due(self, task: TaskName) -> bool:
        """Whether it may be handed out now."""
        return task not in self._due_at or self._due_at[task] <= self._clock()

    def handed_out(self, task: TaskName) -> None:
        self._due_at.pop(task, None)

    @property
    def waiting(self) -> bool:
        """Whether any task is to be tried again."""
        return bool(self._due_at)


def too_many(n_failed: int, n_ended: int) -> bool:
    """Whether so many failed trials, of those that ended, are no longer chance."""
    return n_failed >= MIN_FAILED and n_failed > MAX_FAILED_SHARE * n_ended
