"""Which process runs a sweep: it holds a lock in the sweep's folder, and its number stands there."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from trainables.values.errors import ConfigError

OWNER = "owner"
"""In a sweep's folder: the number of the process that runs it, which locks it."""
SCRATCH = "ray"
"""There too while it runs: what Ray Tune writes for itself, which nobody reads."""


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold a sweep's folder for this process; a folder in which nothing began is gone again afterwards.

    Raises:
        ConfigError: another process runs this sweep; the message names it.
    """
    with _locked(folder) as file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
            leave_nothing(folder)


def leave_nothing(folder: Path) -> None:
    """Take away what nobody reads of a folder, and itself where nothing began in it; for the process that holds it."""
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)
    with suppress(OSError):
        if os.listdir(folder) == [OWNER]:
            (folder / OWNER).unlink()
            folder.rmdir()


def owner_of(folder: Path) -> int | None:
    """Number of the process that runs the sweep in a folder; None where none does, 0 where it has not said it yet."""
    try:
        with (folder / OWNER).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read().strip() or 0)
    except OSError:
        return None
    return None


def _locked(folder: Path, n_tries: int = 100) -> TextIO:
    """The file that holds a sweep's folder, locked; a start that was refused may take both away at any moment."""
    path = folder / OWNER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except (FileNotFoundError, FileExistsError):
        if not n_tries:
            raise
        return _locked(folder, n_tries - 1)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            file.seek(0)
            owner = file.read().strip() or "unknown"
        busy = f"NAME: sweep {folder.name!r} is being run by process {owner}"
        raise ConfigError(f"{busy}; let it end, or stop it: qlora-sweep stop {folder.name}") from None
    with suppress(FileNotFoundError):
        if os.path.samefile(path, file.fileno()):
            return file
    file.close()
    return _locked(folder, n_tries)
