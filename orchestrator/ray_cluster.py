"""Connecting to Ray: a private one on this machine, or a running cluster."""

import logging
import os
import socket
import warnings

from orchestrator.settings import SweepSettings
from trainables.device import count_gpus
from trainables.errors import ConfigError, Unreachable

OBJECT_STORE_BYTES = 256 * 2**20
MAX_CPU_WORKERS = 4
"""Trials at once on a machine without a GPU; each worker holds its own PyTorch."""
KNOCK_SECONDS = 4.0
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "PYTHONWARNINGS": "ignore",
}


def connect(address: str | None, *, insecure: bool = False) -> None:
    """Start a private Ray on this machine, or join the cluster at `address`.

    Args:
        insecure: join a cluster that asks for no token.
    Raises:
        ConfigError: it asks for none, or this process has none; see orchestrator.ray_guard.
        Unreachable: no cluster answers there.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # the ledger says which trials did not complete
    import ray

    from orchestrator import ray_guard

    if ray.is_initialized():
        return
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        ray_guard.guard_private()
        n_cpus = len(os.sched_getaffinity(0))
        n_gpus = count_gpus()
        ray.init(
            address="local",
            num_cpus=max(n_cpus, n_gpus) if n_gpus else min(n_cpus, MAX_CPU_WORKERS),
            num_gpus=n_gpus,
            object_store_memory=OBJECT_STORE_BYTES,
            **quiet,
        )
        return
    _knock(address)
    ray_guard.guard_cluster(address, insecure=insecure)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Unreachable(f"ADDRESS: no Ray cluster answers at {address!r} ({reason})") from None


def _knock(address: str) -> None:
    """Ask quickly whether a Ray cluster answers at HOST:PORT; `ray.init` itself would wait for minutes.

    Raises:
        ConfigError: not of the form auto or [ray://]HOST:PORT.
        Unreachable: nothing listens there.
    """
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"ADDRESS must be auto, HOST:PORT or ray://HOST:PORT, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise Unreachable(f"ADDRESS: no cluster answers at {address!r} ({error}); start one, or leave it out") from None


def has_gpu() -> bool:
    """Whether the connected cluster has any GPU."""
    import ray

    return ray.cluster_resources().get("GPU", 0) > 0


def n_slots(settings: SweepSettings) -> int:
    """Trials that the connected cluster can run at once.

    Raises:
        ConfigError: one trial asks for more than any node has.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if settings.device == "cuda":
        most = max((node.get("GPU", 0) for node in nodes), default=0)
        if settings.gpus_per_trial > most:
            raise ConfigError(
                f"gpus_per_trial is {settings.gpus_per_trial:g}, the largest node of the cluster has {most:g} "
                f"(the whole cluster: {sum(node.get('GPU', 0) for node in nodes):g})"
            )
        return sum(int(node.get("GPU", 0) / settings.gpus_per_trial) for node in nodes)
    slots = sum(int(node.get("CPU", 0)) for node in nodes)
    if not slots:
        raise ConfigError("the cluster has no CPU to run trials on")
    return slots
