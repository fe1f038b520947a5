"""A sweep's adapters outside the driver: in S3, GCS or a shared folder, through pyarrow's file systems."""

import os
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from pyarrow import fs

from trainables.values.errors import ConfigError


def locate(storage: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI (s3://, gs://, file://) or a folder, and the path on it.

    Raises:
        ConfigError: it is neither.
    """
    try:
        if "://" in storage:
            return fs.FileSystem.from_uri(storage)
        return fs.LocalFileSystem(), str(Path(os.path.expanduser(storage)).resolve())
    except (OSError, ValueError, NotImplementedError) as error:
        reason = f"is no s3://, gs:// or file:// address, and no folder ({error})"
        raise ConfigError(f"storage: {storage!r} {reason}") from None


def put_mark(storage: str) -> str:
    """Write a small file that everybody who shares the storage can read; returns its name.

    Raises:
        ConfigError: it cannot be written.
    """
    system, path = locate(storage)
    name = f".qlora-sweep-{uuid4().hex}"
    try:
        _write(system, f"{path}/{name}", name.encode())
    except OSError as error:
        raise ConfigError(f"storage: {storage} cannot be written ({_text(error)})") from None
    return name


def remove_mark(storage: str, mark: str) -> None:
    system, path = locate(storage)
    system.delete_file(f"{path}/{mark}")


def fault(storage: str, mark: str) -> str | None:
    """What is wrong with the storage as this machine sees it, None where nothing is: read the mark, write, delete."""
    try:
        system, path = locate(storage)
        with system.open_input_stream(f"{path}/{mark}") as file:
            if file.read() != mark.encode():
                return "gives back something else than was written"
    except FileNotFoundError:
        return "is not the driver's: what the driver wrote there is not to be seen"
    except (OSError, ConfigError) as error:
        return f"cannot be read ({_text(error)})"
    try:
        remove_mark(storage, put_mark(storage))
    except (OSError, ConfigError) as error:
        return f"cannot be written ({_text(error)})"
    return None


def write(storage: str, sweep: str, key: str, files: Mapping[str, bytes]) -> None:
    """Keep a trial's adapter under storage/sweep/key."""
    system, path = locate(storage)
    for name, content in files.items():
        _write(system, f"{path}/{sweep}/{key}/{name}", content)


def read(storage: str, sweep: str, key: str) -> dict[str, bytes]:
    """The files of a trial's adapter by name.

    Raises:
        FileNotFoundError: it has none.
    """
    system, path = locate(storage)
    found = {}
    for info in system.get_file_info(fs.FileSelector(f"{path}/{sweep}/{key}")):
        if info.is_file:
            with system.open_input_stream(info.path) as file:
                found[info.base_name] = file.read()
    return found


def _write(system: fs.FileSystem, path: str, content: bytes) -> None:
    if isinstance(system, fs.LocalFileSystem):  # an object store has no folders to make
        system.create_dir(path.rpartition("/")[0], recursive=True)
    with system.open_output_stream(path) as file:
        file.write(content)


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
