"""Adapters of a sweep in its folder: written whole or not at all, read back, held against their checksums."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp

WEIGHTS = "adapter_model.safetensors"
CHECKSUMS = "SHA256SUMS"
"""Beside an adapter's files, as `sha256sum --check` reads it; adapters of older sweeps have none."""


def write(folder: Path, key: str, files: Mapping[str, bytes]) -> str:
    """Keep a trial's adapter under `folder`/key, whole or not at all.

    Returns:
        SHA-256 (hex) of its weights.
    """
    check_key(key)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=".adapter-", dir=folder))
    digests = {name: _sha256(content) for name, content in sorted(files.items())}
    lines = [f"{digest}  {name}\n" for name, digest in digests.items()]
    for name, content in {**files, CHECKSUMS: "".join(lines).encode()}.items():
        with (scratch / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    shutil.rmtree(folder / key, ignore_errors=True)
    scratch.rename(folder / key)
    return digests[WEIGHTS]


def read(folder: Path, key: str) -> dict[str, bytes] | None:
    """The files of a trial's adapter by name, or None where it has none."""
    check_key(key)
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


def check_key(key: str) -> None:
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
