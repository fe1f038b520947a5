"""A process that compiles kernels while its worker imports what trials need: in one process the two take turns."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from trainables.cost.device import compute_capability, has_spare_cores
from trainables.values.own_process import command_of, own_environment

MODULE = "trainables.models.compile_ahead"


def begin(device: str) -> "subprocess.Popen | None":
    """Start it where it gains time: on a GPU's machine with cores to spare where Triton has kept nothing yet.

    It ends by itself, see MODULE, and what it cannot do is left to the worker.
    """
    if device != "cuda" or not has_spare_cores() or _has_kept(triton_cache()):
        return None
    capability = compute_capability()
    if capability is None:
        return None
    silent = {name: subprocess.DEVNULL for name in ("stdin", "stdout", "stderr")}
    with suppress(OSError):
        return subprocess.Popen(command_of(MODULE, str(capability)), env=own_environment(), **silent)
    return None


def triton_cache() -> Path:
    """Where Triton keeps what it has compiled, as its documentation says."""
    home = Path(os.environ.get("TRITON_HOME") or Path.home())
    return Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")


def _has_kept(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
