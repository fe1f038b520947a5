"""A Ray of this process alone, on this machine; it starts beside what else this process does."""

import logging
import math
import os
import warnings
from collections.abc import Collection
from functools import partial
from typing import Any

from orchestrator.security import ray_guard
from trainables.cost.device import count_gpus
from trainables.values.beside import Beside
from trainables.values.errors import Unreachable

OBJECT_STORE_BYTES = 256 * 2**20
MAX_CPU_WORKERS = 4
"""Trials at once on a machine without a GPU; each worker holds its own PyTorch."""
SPARE_CPUS = 4
"""Beside one for each trial at once on GPUs. Ray starts as many Python processes as it has CPUs, all at once: on a
large machine they keep the one that is needed waiting."""
VARIABLES = {
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # workers that may start at the same time: for a searcher it would be one
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TORCHDYNAMO_DISABLE": "1",  # else bitsandbytes has each worker load a compiler that nothing here calls
    "RAY_worker_niceness": "0",  # else 15: behind all else on this machine, MLflow's writer (10) included
    "PYTHONWARNINGS": "ignore",
}
_begun: Beside[None] | None = None
"""A start, until somebody waits for it."""


def begin(gpus_per_trial: float = 1.0) -> None:
    """Start beside what this process does next; `waited_for` is called before Ray is used."""
    global _begun
    set_variables()
    import ray

    if not is_starting() and not ray.is_initialized():
        logging.getLogger("ray._private.worker").setLevel(logging.ERROR)  # no word of a signal that others take
        _begun = Beside(partial(start, gpus_per_trial), stays=True)


def is_starting() -> bool:
    """Whether it is half started: Ray can crash where it is to clean that up."""
    return _begun is not None and not _begun.is_over


def waited_for() -> bool:
    """Wait for what has begun; False where nothing has.

    Raises:
        Unreachable: see `start`.
    """
    global _begun
    if _begun is None:
        return False
    try:
        _begun.result()
    finally:
        if not is_starting():  # else who waited was interrupted
            _begun = None
    return True


def set_variables() -> None:
    """What Ray, of a cluster too, reads of the environment, and what it need not say."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # the ledger says which trials did not complete
    logging.getLogger("ray.widgets.util").setLevel(logging.ERROR)  # a notebook needs no widgets: its table is ours


def start(gpus_per_trial: float = 1.0) -> None:
    """Start it here and now.

    Args:
        gpus_per_trial: where trials run on GPUs.
    Raises:
        Unreachable: it did not come up.
    """
    import ray

    ray_guard.guard_private()
    try:
        ray.init(**_private(os.sched_getaffinity(0), count_gpus(), gpus_per_trial))
    except Exception as error:  # Ray raises no narrower kind where its processes do not come up in time
        reason = " ".join(str(error).split())
        raise Unreachable(
            f"Ray did not start on this machine ({reason[:200]}); if other work held it up, run the same again"
        ) from None


def _private(cpus: Collection[int], n_gpus: int, gpus_per_trial: float = 1.0) -> dict[str, Any]:
    """Arguments of `ray.init` for a Ray of this process alone."""
    n_cpus = min(max(len(cpus), n_gpus), math.ceil(n_gpus / gpus_per_trial) + SPARE_CPUS)
    return {
        "address": "local",
        "num_cpus": n_cpus if n_gpus else min(len(cpus), MAX_CPU_WORKERS),
        "num_gpus": n_gpus,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": None if os.environ.get("RAY_TMPDIR") else str(ray_guard.private_folder()),
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
