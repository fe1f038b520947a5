"""Adapters of a sweep: written by the driver, read by workers through one small Ray actor.

Workers never see the sweep's folder, so they need no shared disk. The same actor keeps their checkpoints.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.workers import checkpoints
from trainables.snapshot import Snapshot

WEIGHTS = "adapter_model.safetensors"
CHECKSUMS = "SHA256SUMS"
"""Beside an adapter's files, as `sha256sum --check` reads it; adapters of older sweeps have none."""


def write(folder: Path, key: str, files: Mapping[str, bytes]) -> str:
    """Keep a trial's adapter under `folder`/key, whole or not at all.

    Returns:
        SHA-256 (hex) of its weights.
    """
    _check(key)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=".adapter-", dir=folder))
    lines = [f"{_sha256(content)}  {name}\n" for name, content in sorted(files.items())]
    for name, content in {**files, CHECKSUMS: "".join(lines).encode()}.items():
        with (scratch / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    shutil.rmtree(folder / key, ignore_errors=True)
    scratch.rename(folder / key)
    return _sha256(files[WEIGHTS])


def read(folder: Path, key: str) -> dict[str, bytes] | None:
    """The files of a trial's adapter by name, or None where it has none."""
    _check(key)
    if not (folder / key / WEIGHTS).is_file():
        return None
    return {path.name: path.read_bytes() for path in (folder / key).iterdir() if path.name != CHECKSUMS}


def fault(adapter: Path, sha256: str | None) -> str | None:
    """What is wrong with the adapter in a folder of its own, None where nothing is.

    Args:
        sha256: of its weights, as the ledger has it.
    """
    try:
        lines = (_content(adapter / CHECKSUMS) or b"").decode("utf-8").splitlines()
        expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        for name, digest in (expected | {WEIGHTS: sha256}).items():
            content = _content(adapter / name)
            if content is None:
                return f"{name} is gone"
            if _sha256(content) != digest:
                return f"{name} is not what was recorded (its SHA-256 differs)"
    except (OSError, ValueError) as error:
        return f"cannot be read ({type(error).__name__})"
    return None


def restore(folder: Path, key: str, copy: Path, sha256: str | None) -> bool:
    """Bring a trial's adapter back from a copy of it, if that is whole; returns whether it was."""
    if fault(copy, sha256):
        return False
    write(folder, key, {path.name: path.read_bytes() for path in copy.iterdir() if path.name != CHECKSUMS})
    return True


def _check(key: str) -> None:
    """A ledger from elsewhere may hold anything."""
    if Path(key).name != key or key == "..":
        raise ValueError(f"no trial has the key {key!r}")


def _content(path: Path) -> bytes | None:
    """Of a file; None where there is none. Not looked for first: a sweep has thousands."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, concurrency_groups={"writing": 1})
class AdapterStore:
    """Reads adapters for workers, keeps their checkpoints and reads them back; lives on the driver's node."""

    def __init__(self, adapters: str, snapshots: str) -> None:
        self._adapters = Path(adapters)
        self._snapshots = Path(snapshots)

    def read(self, key: str) -> dict[str, bytes] | None:
        return read(self._adapters, key)

    @ray.method(concurrency_group="writing")  # nobody who reads an adapter waits for a disk to sync
    def keep(self, snapshot: Snapshot) -> None:
        _check(snapshot.key)
        checkpoints.write(self._snapshots, snapshot)

    def snapshot(self, key: str) -> Snapshot | None:
        _check(key)
        return checkpoints.read(self._snapshots, key)


def serve(adapters: Path, snapshots: Path) -> ray.actor.ActorHandle:
    """Start the actor for two folders on this node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return AdapterStore.options(scheduling_strategy=here).remote(str(adapters.resolve()), str(snapshots.resolve()))
