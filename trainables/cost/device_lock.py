"""A shared / exclusive lock on one device: many processes train on it at once, one measures alone.

Two lock files a device (flock, released by the kernel when a process dies): the lock itself, and an entrance through
which everybody passes. Who wants to be alone closes the entrance first: a steady stream of others cannot starve it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir


class DeviceLock:
    """The lock of one device among the processes of one user on one machine."""

    def __init__(self, device_id: str, folder: Path | None = None) -> None:
        """
        Args:
            device_id: the same for every process that uses the device, e.g. a GPU's UUID.
            folder: of the lock files; by default one of this user under the machine's temporary folder.
        """
        self._folder = folder or Path(gettempdir()) / f"qlora-sweep-{os.getuid()}"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._entrance = self._folder / f"{device_id}.gate"
        self._lock = self._folder / f"{device_id}.room"
        self._is_held = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock together with others; waits while somebody is, or waits to be, alone.

        Inside a turn of this process it is that turn.
        """
        if self._is_held:  # a second entrance would wait for one who waits for this turn to end
            yield
            return
        with _locked(self._entrance, fcntl.LOCK_SH):
            lock = _open(self._lock, fcntl.LOCK_SH)
        try:
            with self._turn():
                yield
        finally:
            os.close(lock)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody else holds the lock, and keep everybody out.

        Raises:
            RuntimeError: inside a turn of this process, which would wait for itself.
        """
        if self._is_held:
            raise RuntimeError("this process has a turn on the device already")
        with _locked(self._entrance, fcntl.LOCK_EX), _locked(self._lock, fcntl.LOCK_EX), self._turn():
            yield

    @contextmanager
    def _turn(self) -> Iterator[None]:
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False


def _open(path: Path, kind: int) -> int:
    """A file descriptor that holds a lock on the file until it is closed; `kind` is fcntl.LOCK_SH or LOCK_EX."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, kind)
    except BaseException:
        os.close(file)
        raise
    return file


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    file = _open(path, kind)
    try:
        yield
    finally:
        os.close(file)
