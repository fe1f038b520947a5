"""Settings -> Workload: bring the base model and the rows onto the driver, once, before any trial."""

from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster import ray_cluster
from orchestrator.driver import duration, plan
from orchestrator.settings import SweepSettings
from trainables.cost.device import device_name, native_dtype
from trainables.cost.predicted_time import Speed
from trainables.data import tokens
from trainables.models import base_model, inputs
from trainables.values.config import ComputeDtype, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a sweep's trials run on; of several kinds, what all of them can do.

    Attributes:
        names: of the kinds.
        compute_dtype: the sweep's arithmetic.
        memory_mib: that a trial may allocate on any of them; None on a CPU.
        speed: of the slowest; None on a CPU.
    """

    names: frozenset[str]
    compute_dtype: ComputeDtype
    memory_mib: float | None = None
    speed: Speed | None = None


def ask_device(settings: SweepSettings) -> Device:
    """Asked on workers, as the driver must not open the GPU, and may have none; needs a connected Ray."""
    from orchestrator.cluster import nodes

    asked = settings.compute_dtype
    if settings.device == "cpu":
        native = native_dtype("cpu")
        return Device(names=frozenset({device_name("cpu")}), compute_dtype=native if asked == "auto" else asked)
    found = nodes.gpus(settings.resources)
    native = "bfloat16" if all(gpu.dtype == "bfloat16" for gpu in found) else "float16"
    return Device(
        names=frozenset(gpu.name for gpu in found),
        compute_dtype=native if asked == "auto" else asked,
        memory_mib=min(gpu.memory_mib for gpu in found),
        speed=min((gpu.speed for gpu in found), key=lambda speed: speed.products_flops),
    )


def prepare(settings: SweepSettings, root: Path) -> tuple[Workload, dict[str, int], float | None]:
    """Join the cluster, if one is given; fetch, check, split and tokenize; ask the nodes.

    Args:
        root: caches lie under root/cache.
    Returns:
        The workload; counts of rows read, dropped by reason, in each split, and too long for the space; and
        the MiB that a trial may allocate on any device of the sweep, None for a CPU.
    Raises:
        ConfigError, DataError, Unreachable: before any GPU is used.
    """
    if settings.address is not None:
        ray_cluster.connect(settings.address, insecure=settings.insecure)  # first: what does not answer is said at once
    found = inputs.fetch(
        settings.base_model,
        settings.data,
        (root / "cache").resolve(),
        data_split=settings.data_split,
        columns=settings.columns,
    )
    plan.check_lengths(settings, base_model.context_tokens(found.base.folder))
    from orchestrator.cluster import nodes  # imports Ray: after what finds bad input

    if settings.address is None:
        ray_cluster.connect(None)
    ray_cluster.n_slots(settings)  # refuses what no node has, before a task waits for it without end
    if settings.address is not None:
        nodes.check_versions()
    if settings.storage is not None:
        nodes.check_storage(settings.storage)
    device = ask_device(settings)
    if device.speed is not None:
        duration.keep(device, root)
    limit = min(settings.lengths_tokens)
    counts = {**found.tokens.counts, **tokens.cut_counts(tokens.load(found.tokens.folder)["train"], limit)}
    return found.workload(device.compute_dtype), counts, device.memory_mib
