"""Taking turns on one device: many processes work on it at once, one measures alone.

Two lock files a device (flock, released by the kernel when a process dies). Who wants to be alone
closes the gate first, so that a steady stream of others cannot keep it waiting.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir


class DeviceLock:
    """The turns of one device among the processes of one user on one machine."""

    def __init__(self, device_id: str, folder: Path | None = None) -> None:
        """
        Args:
            device_id: the same for every process that uses the device, e.g. a GPU's UUID.
            folder: of the lock files; by default one of this user under the machine's temporary folder.
        """
        self._folder = folder or Path(gettempdir()) / f"qlora-sweep-{os.getuid()}"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._gate = self._folder / f"{device_id}.gate"
        self._room = self._folder / f"{device_id}.room"

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Work beside others."""
        with _locked(self._gate, fcntl.LOCK_SH):
            room = _open(self._room, fcntl.LOCK_SH)
        try:
            yield
        finally:
            os.close(room)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody else works here, and keep everybody out."""
        with _locked(self._gate, fcntl.LOCK_EX), _locked(self._room, fcntl.LOCK_EX):
            yield


def _open(path: Path, kind: int) -> int:
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
