"""One small Ray actor on the driver's node, through which workers read adapters and keep their checkpoints.

Workers never see the sweep's folder, so they need no shared disk.
"""

from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.ledger import adapter_store
from orchestrator.workers import checkpoints
from trainables.values.checkpoint import Checkpoint


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, concurrency_groups={"writing": 1})
class AdapterStore:
    """Reads adapters for workers, keeps their checkpoints and reads them back; lives on the driver's node."""

    def __init__(self, adapters: str, snapshots: str) -> None:
        self._adapters = Path(adapters)
        self._snapshots = Path(snapshots)

    def read(self, key: str) -> dict[str, bytes] | None:
        return adapter_store.read(self._adapters, key)

    @ray.method(concurrency_group="writing")  # nobody who reads an adapter waits for a disk to sync
    def keep(self, checkpoint: Checkpoint) -> None:
        adapter_store.check_key(checkpoint.key)
        checkpoints.write(self._snapshots, checkpoint)

    def checkpoint(self, key: str) -> Checkpoint | None:
        adapter_store.check_key(key)
        return checkpoints.read(self._snapshots, key)


def serve(adapters: Path, snapshots: Path) -> ray.actor.ActorHandle:
    """Start the actor for two folders on this node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return AdapterStore.options(scheduling_strategy=here).remote(str(adapters.resolve()), str(snapshots.resolve()))
