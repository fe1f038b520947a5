"""Faults by kind: what is not a trial's own doing is tried again, a few times and not at once."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray import cloudpickle
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from trainables.values.errors import DeviceLost

BACK_OFF_SECONDS = (2.0, 10.0)
"""Pause before a task is tried again, for the first time, for the second; it is not tried more often."""
REFUSED = re.compile(r"IncompatibleNode: (.+)")
"""The last line that Ray keeps of a worker which found its node unfit, see orchestrator.workers.versions."""
MAX_FAILED_SHARE = 0.3
MIN_FAILED = 5
"""A sweep stops when more than this share of its trials failed, and at least so many."""

Kind = Literal["worker", "node", "incompatible node", "host memory", "device", "own"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why Ray gave a task up.

    Attributes:
        kind: the worker process was lost, or its whole node; it found its node unfit before it began; Ray killed it
            because the host (never the GPU) was out of memory; its GPU was of no more use to it; or the task's own
            code raised. Only the last is never tried again.
        text: in words.
    """

    kind: Kind
    text: str

    @property
    def is_own(self) -> bool:
        return self.kind == "own"


def fault_of(error: BaseException | None, text: str = "") -> Fault:
    """Of what kind an error of Ray is.

    Args:
        text: what is known where the error itself is not.
    """
    if isinstance(error, RayTaskError):
        cause = error.as_instanceof_cause()
        of_ray = RayActorError | OutOfMemoryError | NodeDiedError | WorkerCrashedError | ObjectLostError
        error = cause if isinstance(cause, of_ray | DeviceLost) else error
    said = str(error or text)
    short = " ".join(said.split())
    if isinstance(error, OutOfMemoryError) or "due to the node running low on memory" in short:
        return Fault(kind="host memory", text="Ray killed its worker process: the host (not the GPU) ran out of memory")
    if isinstance(error, NodeDiedError) or (isinstance(error, RayActorError) and _names_a_node(short)):
        return Fault(kind="node", text="its node was lost")
    if isinstance(error, RayActorError) and not error.actor_init_failed:
        return Fault(kind="worker", text="its worker process was lost")
    if isinstance(error, WorkerCrashedError | ObjectLostError):
        return Fault(kind="worker", text="its worker process was lost")
    if isinstance(error, DeviceLost):
        said = " ".join(str(getattr(error, "cause", error)).split())
        return Fault(kind="device", text=f"its GPU was of no more use to its process: {said[:300]}")
    last = said.strip().splitlines()[-1:] or ["unknown"]
    if isinstance(error, RayActorError) and (refused := REFUSED.search(last[0])):
        return Fault(kind="incompatible node", text=f"its node was unfit: {refused[1][:300]}")
    if isinstance(error, RayActorError) and "failed to import on the worker" in short:
        return Fault(kind="node", text=f"its node lacks what a worker needs: {last[0].strip()[:300]}")
    return Fault(kind="own", text=f"its worker could not go on: {last[0].strip()[:300]}")


def fault_of_trial(trial: Any) -> Fault:
    """Of what kind the error is that Ray Tune has just kept of one of its trials, in files of this process's own."""
    kept = [Path(path) if path else None for path in (trial.pickled_error_file, trial.error_file)]
    pickled, text = (path if path and path.is_file() else None for path in kept)
    said = text.read_text("utf-8", errors="replace") if text else ""
    return fault_of(cloudpickle.loads(pickled.read_bytes()) if pickled else None, said)


def _names_a_node(text: str) -> bool:
    return any(
        words in text for words in ("its node has died", "node is dead", "node died", "node has been terminated")
    )


class Retries:
    """Which tasks are tried again, and when; a task is named by its kind and its trial's key."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._n_lost: dict[tuple[str, str], int] = {}
        self._due_at: dict[tuple[str, str], float] = {}

    def again(self, task: tuple[str, str], fault: Fault) -> bool:
        """A task was given up; returns whether it is to be tried again, once `is_due`."""
        if (
            fault.kind == "incompatible node"
        ):  # it never began; the driver soon knows the node, and places nothing there
            self._due_at[task] = self._clock() + BACK_OFF_SECONDS[0]
            return True
        n_lost = self._n_lost[task] = self._n_lost.get(task, 0) + 1
        if fault.is_own or n_lost > len(BACK_OFF_SECONDS):
            return False
        self._due_at[task] = self._clock() + BACK_OFF_SECONDS[n_lost - 1]
        return True

    def n_lost(self, task: tuple[str, str]) -> int:
        """How often it was given up."""
        return self._n_lost.get(task, 0)

    def is_due(self, task: tuple[str, str]) -> bool:
        """Whether it may be handed out now."""
        return task not in self._due_at or self._due_at[task] <= self._clock()

    def handed_out(self, task: tuple[str, str]) -> None:
        self._due_at.pop(task, None)

    @property
    def waiting(self) -> bool:
        """Whether any task is to be tried again."""
        return bool(self._due_at)


def too_many(n_failed: int, n_ended: int) -> bool:
    """Whether so many failed trials, of those that ended, are no longer chance."""
    return n_failed >= MIN_FAILED and n_failed > MAX_FAILED_SHARE * n_ended
