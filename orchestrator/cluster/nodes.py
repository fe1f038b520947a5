"""The nodes of a cluster, asked before a trial runs there: versions on every node, and what its GPUs are.

A node imports this module from what Ray ships, before anything else of ours: so it imports nothing that may be missing.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import NodeDiedError, TaskUnschedulableError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.workers.versions import PACKAGES, alive, differences, node_name
from trainables.cost.device import device_name, free_memory_mib, native_dtype, versions
from trainables.cost.predicted_time import Speed, measure
from trainables.values.config import ComputeDtype
from trainables.values.errors import ConfigError, Unreachable

logger = logging.getLogger(__name__)

SAME_CODE = (
    "Trials of one sweep must run the same code: install the same versions there (constraints.txt), or start nodes "
    "from the image of orchestrator/cluster/Dockerfile"
)
ANSWER_SECONDS = 60.0
"""A node starts a Python process to answer; one that has not done so by then is not fit for trials."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One node's GPU, as a trial would have it.

    Attributes:
        name: e.g. "NVIDIA H200".
        memory_mib: that a trial may allocate.
        dtype: the protocol's arithmetic there.
        speed: measured there.
    """

    name: str
    memory_mib: float
    dtype: ComputeDtype
    speed: Speed


@ray.remote(num_cpus=0)
def _versions() -> dict[str, str]:
    return versions(PACKAGES)


@ray.remote(num_cpus=0)
def _storage_fault(where: str, mark: str) -> str | None:
    from orchestrator.workers import storage  # needs pyarrow, which a node may lack

    return storage.fault(where, mark)


@ray.remote(num_cpus=0, max_calls=1)
def _gpu() -> Gpu:
    memory_mib, dtype = free_memory_mib("cuda") or 0.0, native_dtype("cuda")
    return Gpu(name=device_name("cuda"), memory_mib=memory_mib, dtype=dtype, speed=measure("cuda", dtype))


def ask_all(question: Any, *arguments: Any, within_seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    """What a remote function returns on each node, by the node's name; one that goes away meanwhile is left out.

    Raises:
        Unreachable: a node does not answer.
    """
    asked = {}
    for node in alive():
        asked[question.options(scheduling_strategy=_on(node)).remote(*arguments)] = node_name(node)
    _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=within_seconds)
    if silent:
        names = ", ".join(map(asked.__getitem__, silent))
        raise Unreachable(f"ADDRESS: no answer in {within_seconds:g} s from node {names}")
    found = {}
    for ref, where in asked.items():
        try:
            found[where] = ray.get(ref)
        except (TaskUnschedulableError, WorkerCrashedError, NodeDiedError) as error:
            if where in map(node_name, alive()):
                raise Unreachable(f"ADDRESS: node {where} cannot run a task ({type(error).__name__})") from None
    return found


def ask_versions(node: Mapping[str, Any]) -> ray.ObjectRef:
    """A node's versions, once it answers."""
    return _versions.options(scheduling_strategy=_on(node)).remote()


def check_versions() -> None:
    """Compare every node's versions with those here.

    Raises:
        ConfigError: they differ somewhere; each node and package is named.
    """
    faults = differences(versions(PACKAGES), ask_all(_versions))
    if faults:
        raise ConfigError(f"ADDRESS: {'; '.join(faults)}. {SAME_CODE}")


def check_storage(where: str) -> None:
    """Read and write on every node what the driver sees.

    Raises:
        ConfigError: it cannot be written here or on a node, which is named.
    """
    from orchestrator.workers import storage

    mark = storage.put_mark(where)
    try:
        found = ask_all(_storage_fault, where, mark)
    finally:
        storage.remove_mark(where, mark)
    faults = [f"{where} on node {node} {fault}" for node, fault in found.items() if fault]
    if faults:
        raise ConfigError(f"storage: {'; '.join(faults)}")


def gpus(resources: Mapping[str, float], question: Any = _gpu) -> list[Gpu]:
    """What trials will find, from one GPU of each node that has a free one; waits for the first.

    Where there is none yet an autoscaler is to bring one, which may take minutes; that is said.

    Args:
        resources: of a trial, see SweepSettings.resources.
        question: a remote function that looks at its GPU.
    """
    wanted = {kind: share for kind, share in resources.items() if kind not in ("cpu", "gpu")}
    reserved = {"num_gpus": resources["gpu"], "resources": wanted}
    needs = {"GPU": resources["gpu"], **wanted}
    nodes = [n for n in alive() if all(n["Resources"].get(kind, 0) >= share for kind, share in needs.items())]
    if not nodes:
        logger.info("waiting for the cluster's autoscaler to bring the first node with a GPU")
        return [ray.get(question.options(**reserved).remote())]
    asked = [question.options(**reserved, scheduling_strategy=_on(node)).remote() for node in nodes]
    free, busy = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_SECONDS)
    if not free:
        free, busy = ray.wait(asked, num_returns=1)
    for ref in busy:
        ray.cancel(ref, force=True)
    return ray.get(free)


def ask_own_gpu() -> ray.ObjectRef:
    """A GPU of a Ray of this machine alone, once it answers; nothing is reserved for it, as workers start meanwhile."""
    return _gpu.remote()


def _on(node: Mapping[str, Any]) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
