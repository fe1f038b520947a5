"""Adapters of a sweep: written by the driver, read by workers through one small Ray actor.

Workers never see the sweep's folder, so they need no shared disk.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

WEIGHTS = "adapter_model.safetensors"


def write(folder: Path, key: str, files: Mapping[str, bytes]) -> str:
    """Keep a trial's adapter under `folder`/key, whole or not at all.

    Returns:
        SHA-256 (hex) of its weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=".adapter-", dir=folder))
    for name, content in files.items():
        with (scratch / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    shutil.rmtree(folder / key, ignore_errors=True)
    scratch.rename(folder / key)
    return hashlib.sha256(files[WEIGHTS]).hexdigest()


def read(folder: Path, key: str) -> dict[str, bytes] | None:
    """The files of a trial's adapter by name, or None where it has none."""
    if not (folder / key / WEIGHTS).is_file():
        return None
    return {path.name: path.read_bytes() for path in (folder / key).iterdir()}


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class AdapterStore:
    """Reads adapters for workers; lives on the driver's node."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def read(self, key: str) -> dict[str, bytes] | None:
        return read(self._folder, key)


def serve(folder: Path) -> ray.actor.ActorHandle:
    """Start the actor for `folder` on this node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return AdapterStore.options(scheduling_strategy=here).remote(str(folder.resolve()))
