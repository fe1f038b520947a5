"""Settings -> Workload: bring the base model and the rows onto the driver, once, before any trial."""

from pathlib import Path

import ray

from orchestrator import ray_cluster
from orchestrator.settings import SweepSettings
from trainables import data, inputs
from trainables.config import ComputeDtype, Workload
from trainables.device import free_memory_mib, native_dtype


@ray.remote(max_calls=1)
def _asked(device: str) -> tuple[ComputeDtype, float | None]:
    """Asked on a worker: the driver must not open the GPU, and may have none."""
    return native_dtype(device), free_memory_mib(device)


def ask_device(settings: SweepSettings) -> tuple[ComputeDtype, float | None]:
    """The arithmetic of the sweep, and the MiB that a trial may allocate on a GPU; needs a connected Ray."""
    if settings.device == "cpu":
        native, memory_mib = native_dtype("cpu"), None
    else:
        native, memory_mib = ray.get(_asked.options(num_gpus=settings.gpus_per_trial).remote(settings.device))
    return (native if settings.compute_dtype == "auto" else settings.compute_dtype), memory_mib


def prepare(settings: SweepSettings, root: Path) -> tuple[Workload, dict[str, int], float | None]:
    """Fetch, check, split and tokenize, then connect to Ray.

    Args:
        root: caches lie under root/cache.
    Returns:
        The workload; counts of rows read, dropped by reason, in each split, and too long for the space; and
        the MiB that a trial may allocate on the device, None for a CPU.
    Raises:
        ConfigError, DataError, Unreachable: before any GPU is used.
    """
    found = inputs.fetch(settings.base_model, settings.data, (root / "cache").resolve())
    ray_cluster.connect(settings.address, insecure=settings.insecure)
    ray_cluster.n_slots(settings)  # refuses what no node has, before a task waits for it without end
    compute_dtype, memory_mib = ask_device(settings)
    limit = shortest_limit(settings)
    too_long = data.n_longer(data.load(found.tokens.folder)["train"], limit)
    counts = {**found.tokens.counts, f"longer than {limit} tokens": too_long}
    return found.workload(compute_dtype), counts, memory_mib


def shortest_limit(settings: SweepSettings) -> int:
    """The fewest tokens that a training row may keep in this sweep."""
    searched = settings.space.parameters.get("max_length_tokens")
    first = {name: parameter.samples[0] for name, parameter in settings.space.parameters.items()}
    return min(int(n) for n in searched.samples) if searched else settings.config(first).max_length_tokens
