"""SHA-256 of the files that a sweep's end or its report wrote, kept in the ledger: a change of them is seen."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from orchestrator.ledger import Ledger
from orchestrator.ledger.ownership import owned
from trainables.values.errors import ConfigError

FILES = "files"
"""Fact: path in the sweep's folder -> SHA-256 (hex), as last written; not there in ledgers from before it was kept."""


def sha256_of(path: Path) -> str | None:
    """None where there is no such file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def digests(files: Sequence[Path], folder: Path) -> dict[str, str | None]:
    """By path in the sweep's folder."""
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def keep(files: Sequence[Path], folder: Path) -> None:
    """Of files that were written once more, where the ledger has them; a sweep that runs does so itself at its end."""
    ledger = Ledger(folder / "ledger.db", read_only=True)
    known = ledger.fact(FILES)
    ledger.close()
    now = {**(known or {}), **digests(files, folder)}
    if known is None or now == known:
        return
    try:
        with owned(folder):
            ledger = Ledger(folder / "ledger.db")
            ledger.set_fact(FILES, now)
            ledger.close()
    except ConfigError:
        return


def faults(folder: Path, known: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What is wrong with files in a folder: path, and what in words."""
    for name, digest in known.items():
        found = sha256_of(folder / name)
        if found is None:
            yield name, "is gone"
        elif found != digest:
            yield name, "is not what was written (its SHA-256 differs)"
