"""Who may write where a sweep keeps its state: whoever can, decides what others take for its results."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainables.values.errors import ConfigError

OTHERS = stat.S_IWGRP | stat.S_IWOTH


@contextmanager
def narrowed(root: Path) -> Iterator[None]:
    """Take from others the right to write into the folder of all state, where it is ours to take.

    What had to be made for that and is still empty at the end is gone again.

    Raises:
        ConfigError: no folder can be made there.
        OSError: nor by this user; the error has its path.
    """
    folders = (root, root / "sweeps", root / "cache")
    new = [folder for folder in folders if not folder.exists()]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:
            raise ConfigError(
                f"{folder} cannot be used ({root} takes no folders); make it a folder of a disk"
            ) from None
        mode = folder.stat().st_mode
        if mode & OTHERS and folder.stat().st_uid == os.geteuid():
            folder.chmod(stat.S_IMODE(mode) & ~OTHERS)
    try:
        yield
    finally:
        for folder in reversed(new):
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def refuse_shared(folder: Path, root: Path, *, field: str = "NAME") -> None:
    """Before a sweep is resumed, and before its results are read, learned from, taken over or handed on.

    `root` itself may be a link of this user's, to another disk say: what it leads to is looked at.

    Args:
        field: setting that names the sweep.
    Raises:
        ConfigError: the sweep's folder, a folder above it up to `root`, or something in it is a link, of another
            user's, or can be written by others; the message names it and says how to mend that.
    """
    for path in _paths(folder, root):
        with suppress(FileNotFoundError):  # a running sweep's files come and go
            _refuse(path, root, field)


def _refuse(path: Path, root: Path, field: str) -> None:
    found = path.lstat()
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"{field}: {path} belongs to user {found.st_uid}, who can change what is read there")
    if stat.S_ISLNK(found.st_mode):
        if path == root:
            _refuse(root.resolve(), root, field)
            return
        raise ConfigError(f"{field}: {path} is a link, so what is there may be anybody's; put what it leads to there")
    if found.st_mode & OTHERS:
        raise ConfigError(
            f"{field}: {path} can be written by others, who can change what is read there; "
            f"look whether it is as you left it, then: chmod -R go-w {root}"
        )


def _paths(folder: Path, root: Path) -> Iterator[Path]:
    yield from filter(os.path.lexists, (root, root / "sweeps", root / "cache", folder))
    for above, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(above, name)
