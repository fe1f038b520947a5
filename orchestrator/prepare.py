"""Settings -> Workload: bring the base model and the rows onto the driver, once, before any trial."""

from pathlib import Path

import ray

from orchestrator.settings import SweepSettings
from trainables import base_model, data
from trainables.config import ComputeDtype, Workload


@ray.remote(max_calls=1)
def _native_dtype(device: str) -> ComputeDtype:
    """Asked on a worker: the driver must not open the GPU, and may have none."""
    from trainables.device import native_dtype

    return native_dtype(device)


def prepare(settings: SweepSettings, root: Path) -> tuple[Workload, dict[str, int]]:
    """Fetch, check, split and tokenize; needs a connected Ray.

    Args:
        root: caches lie under root/cache.
    Returns:
        The workload, and counts of rows read, dropped by reason and in each split.
    Raises:
        ConfigError, DataError, Unreachable: see trainables.base_model.find and trainables.data.read_rows.
    """
    dtype: ComputeDtype | ray.ObjectRef
    if settings.compute_dtype != "auto":
        dtype = settings.compute_dtype
    elif settings.device == "cpu":
        dtype = "float32"
    else:
        dtype = _native_dtype.options(num_gpus=settings.gpus_per_trial).remote(settings.device)
    cache = (root / "cache").resolve()
    checked = data.read_rows(settings.data)
    base = base_model.find(settings.base_model, cache)
    tokenized = data.tokenize(checked, base.folder, cache)
    workload = Workload(
        base_model=settings.base_model,
        base_folder=str(base.folder.resolve()),
        base_fingerprint=base.fingerprint(),
        weights=base.weights,
        data=settings.data,
        data_folder=str(tokenized.folder),
        data_digest=tokenized.digest,
        compute_dtype=ray.get(dtype) if isinstance(dtype, ray.ObjectRef) else dtype,
    )
    return workload, dict(tokenized.counts)
