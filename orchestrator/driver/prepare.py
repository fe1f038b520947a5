"""Settings -> Ready: bring the base model and the rows onto the driver, once, before any trial."""

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cluster import private_ray, ray_cluster
from orchestrator.driver import duration, plan
from orchestrator.driver.ready import Ready
from trainables.models import base_model, inputs

if TYPE_CHECKING:
    from orchestrator.settings import SweepSettings


def prepare(settings: "SweepSettings", root: Path) -> Ready:
    """Join the cluster, if one is given; fetch, check, split and tokenize; ask the nodes.

    Without a cluster a private Ray starts once the rows are known to be sound, beside what follows: the rows become
    tokens, the weights are hashed, and this process imports Ray Tune.

    Args:
        root: caches lie under root/cache.
    Returns:
        What the sweep begins with.
    Raises:
        ConfigError, DataError, Unreachable: before any GPU is used.
    """
    if settings.address is not None:
        ray_cluster.connect(settings.address, insecure=settings.insecure)  # first: what does not answer is said at once
    plan.check_known_lengths(settings)
    fetched = inputs.fetch(
        settings.base_model,
        settings.data,
        (root / "cache").resolve(),
        data_split=settings.data_split,
        columns=settings.columns,
        are_sound=private_ray.begin if settings.address is None else lambda: None,
    )
    plan.check_lengths(settings, base_model.context_tokens(fetched.base.folder))
    counts = {**fetched.tokens.counts, **fetched.cut_counts(min(settings.lengths_tokens))}
    ray_cluster.spare_mlflow()
    from orchestrator.driver import tuning  # noqa: F401  # brings Ray Tune, while Ray starts
    from orchestrator.driver.devices import ask_device, check_nodes

    if settings.address is None:
        ray_cluster.connect(None)
    ray_cluster.n_slots(settings)  # refuses what no node has, before a task waits for it without end
    check_nodes(settings)
    device = ask_device(settings)
    if device.speed is not None:
        duration.keep(device, root)
    return Ready(workload=fetched.workload(device.compute_dtype), counts=counts, device=device)
