"""The devices that a sweep's trials run on, asked of the nodes of a connected Ray."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import ray

from orchestrator.cluster import nodes
from orchestrator.driver.ready import SweepDevice
from trainables.cost.device import device_name, native_dtype

if TYPE_CHECKING:
    from orchestrator.settings import SweepSettings


def ask_device(settings: "SweepSettings") -> Callable[[], SweepDevice]:
    """Asked on workers, as the driver must not open the GPU, and may have none.

    Returns:
        What waits for the answer. Of a cluster, and of one kind of several, it is there already: workers would hold
        the GPUs that are asked.
    """
    asked = settings.compute_dtype
    if settings.device == "cpu":
        native = native_dtype("cpu")
        device = SweepDevice(names=frozenset({device_name("cpu")}), compute_dtype=native if asked == "auto" else asked)
        return lambda: device
    if settings.address is None and settings.device_kind is None:
        answer = nodes.ask_own_gpu()
        return lambda: _device(settings, [ray.get(answer)])
    gpus = nodes.gpus(settings.resources)
    return lambda: _device(settings, gpus)


def _device(settings: "SweepSettings", gpus: "Sequence[nodes.Gpu]") -> SweepDevice:
    asked = settings.compute_dtype
    native = "bfloat16" if all(gpu.dtype == "bfloat16" for gpu in gpus) else "float16"
    return SweepDevice(
        names=frozenset(gpu.name for gpu in gpus),
        compute_dtype=native if asked == "auto" else asked,
        memory_mib=min(gpu.memory_mib for gpu in gpus),
        speed=min((gpu.speed for gpu in gpus), key=lambda speed: speed.products_flops),
    )


def check_nodes(settings: "SweepSettings") -> None:
    """Refuse nodes of a cluster that run other code, or that cannot write where adapters go.

    Raises:
        ConfigError, Unreachable: see orchestrator.cluster.nodes.
    """
    if settings.address is not None:
        nodes.check_versions()
    if settings.storage is not None:
        nodes.check_storage(settings.storage)
