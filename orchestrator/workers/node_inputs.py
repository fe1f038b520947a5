"""The base model and the tokens on every node: read once per node from the driver's, through Ray alone.

A node keeps them under a name that their content decides, so that later trials, workers and sweeps find them there.
Nodes need neither a shared disk nor a network beyond Ray's.
"""

import fcntl
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir, mkdtemp

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainables.values.workload import Workload

CHUNK_BYTES = 32 * 2**20
"""Of one message: neither end ever holds a whole model."""


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class InputStore:
    """Reads folders for other nodes; lives on the driver's node."""

    def __init__(self, folders: Mapping[str, str]) -> None:
        self._folders = {name: Path(folder) for name, folder in folders.items()}

    def files(self, name: str) -> dict[str, int]:
        """Bytes of each file under a folder, by its path within."""
        folder = self._folders[name]
        return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}

    def read(self, name: str, file: str, begin: int) -> bytes:
        """At most CHUNK_BYTES of a file."""
        with (self._folders[name] / file).open("rb") as content:
            content.seek(begin)
            return content.read(CHUNK_BYTES)


def _node_id() -> str:
    return ray.get_runtime_context().get_node_id()


def serve(workload: Workload) -> dict[str, object]:
    """Start the store on this node; what workers need to find it, for `here`."""
    on_this_node = NodeAffinitySchedulingStrategy(_node_id(), soft=False)
    folders = {"base": workload.base_folder, "tokens": workload.data_folder}
    store = InputStore.options(scheduling_strategy=on_this_node).remote(folders)
    return {"store": store, "node": _node_id()}


def here(workload: Workload, served: Mapping[str, object] | None, cache: Path | None = None) -> Workload:
    """The workload with folders that lie on this node.

    Args:
        served: see `serve`; None where everything runs on one node.
        cache: folder that the node keeps them in; by default one of this user under its temporary folder.
    """
    if served is None or served["node"] == _node_id():
        return workload
    home = cache or Path(gettempdir()) / f"qlora-sweep-{os.getuid()}" / "inputs"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    both = f"{workload.base_fingerprint[:16]}-{workload.data_digest[:8]}"  # weights, and by the digest the tokenizer
    base = _bring(served["store"], "base", home / f"base-{both}")
    tokens = _bring(served["store"], "tokens", home / f"tokens-{workload.data_digest[:16]}")
    return replace(workload, base_folder=str(base), data_folder=str(tokens))


def _bring(store: ray.actor.ActorHandle, name: str, folder: Path) -> Path:
    """Read one folder over, unless a process of this node has done so; others wait meanwhile."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        scratch = Path(mkdtemp(prefix=".inputs-", dir=folder.parent))
        try:
            for file, n_bytes in ray.get(store.files.remote(name)).items():
                path = scratch / file
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as copy:
                    while copy.tell() < n_bytes:
                        copy.write(ray.get(store.read.remote(name, file, copy.tell())))
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder
