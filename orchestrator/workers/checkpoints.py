"""Checkpoints of unfinished trials: files on the driver's disk, each whole or not there, each naming its own checksum.

A trial's folder holds its last snapshots as STEP-SHA256.safetensors. They are only ever a shortcut: without any, a
trial begins anew and comes to the same figures.
"""

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from tempfile import mkstemp

from trainables.values.checkpoint import Checkpoint

FOLDER = "checkpoints"
"""In a sweep's folder."""
N_KEPT = 2
"""Of a trial: the last one, and the one before in case that is damaged."""


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Keep a checkpoint under `folder`/key, and of that trial's others the newest only.

    Raises:
        OSError: it cannot be written, and nothing of it is left.
    """
    content = checkpoint.to_bytes()
    own = folder / checkpoint.key
    own.mkdir(parents=True, exist_ok=True)
    handle, scratch = mkstemp(prefix=".", dir=own)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(scratch, own / f"{checkpoint.step:010d}-{hashlib.sha256(content).hexdigest()}.safetensors")
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    for old in _newest_first(own)[N_KEPT:]:
        old.unlink(missing_ok=True)


def read(folder: Path, key: str) -> Checkpoint | None:
    """The newest checkpoint of a trial that is as it was written, None where there is none."""
    return next(_whole(folder / key, key), None)


def _whole(own: Path, key: str) -> Iterator[Checkpoint]:
    for path in _newest_first(own):
        step, _, sha256 = path.stem.partition("-")
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != sha256:
                continue
            checkpoint = Checkpoint.from_bytes(content)
        except (OSError, ValueError):
            continue
        if checkpoint.key == key and checkpoint.step == int(step):
            yield checkpoint


def _newest_first(own: Path) -> list[Path]:
    return sorted(own.glob("[0-9]*-*.safetensors"), reverse=True)


def discard(folder: Path, key: str) -> None:
    """Forget a trial that has ended."""
    shutil.rmtree(folder / key, ignore_errors=True)


def keep_only(folder: Path, keys: Collection[str]) -> None:
    """Forget all trials but some."""
    for own in folder.iterdir() if folder.is_dir() else ():
        if own.name not in keys:
            shutil.rmtree(own, ignore_errors=True)
    if not keys:
        shutil.rmtree(folder, ignore_errors=True)
