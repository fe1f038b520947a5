"""The devices that a sweep's trials run on, asked of the nodes of a connected Ray."""

from typing import TYPE_CHECKING

from orchestrator.cluster import nodes
from orchestrator.driver.ready import SweepDevice
from trainables.cost.device import device_name, native_dtype

if TYPE_CHECKING:
    from orchestrator.settings import SweepSettings


def ask_device(settings: "SweepSettings") -> SweepDevice:
    """Asked on workers, as the driver must not open the GPU, and may have none."""
    asked = settings.compute_dtype
    if settings.device == "cpu":
        native = native_dtype("cpu")
        return SweepDevice(names=frozenset({device_name("cpu")}), compute_dtype=native if asked == "auto" else asked)
    gpus = nodes.gpus(settings.resources)
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
