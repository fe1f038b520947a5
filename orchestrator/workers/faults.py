"""Of what kind an error of Ray is: the trial's own doing, or not."""

import re
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from orchestrator.ledger.task import TaskFault
from trainables.values.errors import DeviceLost

REFUSED = re.compile(r"IncompatibleNode: (.+)")
"""The last line that Ray keeps of a worker which found its node unfit, see orchestrator.workers.versions."""


def fault_of(error: BaseException | None, text: str = "") -> TaskFault:
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
        return TaskFault(
            kind="host memory", text="Ray killed its worker process: the host (not the GPU) ran out of memory"
        )
    if isinstance(error, NodeDiedError) or (isinstance(error, RayActorError) and _names_a_node(short)):
        return TaskFault(kind="node", text="its node was lost")
    if isinstance(error, RayActorError) and not error.actor_init_failed:
        return TaskFault(kind="worker", text="its worker process was lost")
    if isinstance(error, WorkerCrashedError | ObjectLostError):
        return TaskFault(kind="worker", text="its worker process was lost")
    if isinstance(error, DeviceLost):
        said = " ".join(str(getattr(error, "cause", error)).split())
        return TaskFault(kind="device", text=f"its GPU was of no more use to its process: {said[:300]}")
    last = said.strip().splitlines()[-1:] or ["unknown"]
    if isinstance(error, RayActorError) and (refused := REFUSED.search(last[0])):
        return TaskFault(kind="incompatible node", text=f"its node was unfit: {refused[1][:300]}")
    if isinstance(error, RayActorError) and "failed to import on the worker" in short:
        return TaskFault(kind="node", text=f"its node lacks what a worker needs: {last[0].strip()[:300]}")
    return TaskFault(kind="own", text=f"its worker could not go on: {last[0].strip()[:300]}")


def fault_of_trial(trial: Any) -> TaskFault:
    """Of what kind the error is that Ray Tune has just kept of one of its trials, in files of this process's own."""
    pickled, said = _content(trial.pickled_error_file), _content(trial.error_file)
    return fault_of(cloudpickle.loads(pickled) if pickled else None, said.decode("utf-8", errors="replace"))


def _content(path: str | None) -> bytes:
    return Path(path).read_bytes() if path and Path(path).is_file() else b""


def _names_a_node(text: str) -> bool:
    return re.search("its node has died|node is dead|node died|node has been terminated", text) is not None
