"""Whether a node runs the same code as the driver; asked by the driver of each node, and by each worker of its own.

A worker imports this from what Ray ships, before anything else of ours: so it imports nothing that may be missing.
"""

from collections.abc import Mapping
from typing import Any

import ray

from trainables.cost.device import versions

PACKAGES = (
    *("ray", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets"),
    *("safetensors", "numpy", "pydantic", "pyarrow"),
)
"""What a worker imports."""


class IncompatibleNode(RuntimeError):
    """Raised by a worker on a node of other versions than the driver's."""


def refuse_here(driver: Mapping[str, str] | None) -> None:
    """Hold this node's versions against the driver's.

    Args:
        driver: versions of PACKAGES; None where everything runs on one node.
    Raises:
        IncompatibleNode: they differ; node and packages are named.
    """
    if driver is not None and (faults := differences(driver, {own_name(): versions(PACKAGES)})):
        raise IncompatibleNode("; ".join(faults))


def differences(here: Mapping[str, str], nodes: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What is not as it is here, a phrase for each node and package, by node.

    The build behind a "+" does not count: the driver may have PyTorch for the CPU.

    >>> differences({"torch": "2.13.0+cpu"}, {"a": {"torch": "2.13.0+cu130"}, "b": {"torch": "2.12.1"}})
    ['node b has torch 2.12.1, the driver has 2.13.0']
    """
    faults = []
    for node, there in nodes.items():
        for package, version in here.items():
            theirs, ours = there.get(package, "absent").partition("+")[0], version.partition("+")[0]
            if theirs != ours:
                what = f"no {package}" if theirs == "absent" else f"{package} {theirs}"
                faults.append(f"node {node} has {what}, the driver has {ours}")
    return faults


def alive() -> list[dict[str, Any]]:
    """Ray's own description of each node that is up; needs a connected Ray."""
    return [node for node in ray.nodes() if node["Alive"]]


def own_name() -> str:
    """What the node of this process is called."""
    here = ray.get_runtime_context().get_node_id()
    return next((node_name(node) for node in alive() if node["NodeID"] == here), here[:8])


def node_name(node: Mapping[str, Any]) -> str:
    """What a node is called wherever it is spoken of."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"
