"""Who may talk to Ray: our own listens on the loopback address alone, and every Ray asks for a token.

Whoever may talk to a Ray may run any program as its user.
"""

import os
import secrets
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Literal, TypeVar

from trainables.values.errors import ConfigError, Unreachable
from trainables.values.own_process import command_of, own_environment

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Off, Ray takes the loopback address for this node's and binds every port to it, as it does on macOS and Windows; on
Linux it would bind them to all addresses, and `_node_ip_address` is turned back into the outer one."""
CLOUD_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
PROBE_SECONDS = 8.0
"""For a Python process to start and ask once; the answer itself takes milliseconds."""
Guard = Literal["open", "token"]
Result = TypeVar("Result")


def guard_private() -> None:
    """Have the Ray that this process starts next listen on the loopback address alone, and ask for a token."""
    ensure_token()
    os.environ |= {MODE: "token", LOOPBACK: "0"}
    _read_environment_again(is_private=True)


def private_folder() -> Path:
    """Where our own Ray keeps its sessions: below a folder of this user alone.

    Ray lets everybody write into its sessions' folders, and Tune reads a failed trial's error back from there, pickled.

    Raises:
        ConfigError: somebody else was there first.
    """
    folder = Path("/tmp") / f"qlora-{os.geteuid()}"  # short: the paths of Ray's sockets may have 107 characters
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(f"{folder} is not a folder of your own, closed to others: remove it, or set RAY_TMPDIR")
    return folder / "ray"


def guard_cluster(address: str, *, insecure: bool) -> None:
    """Before joining a cluster: it must ask for a token, and this process must have one.

    Args:
        insecure: join one that asks for none.
    Raises:
        ConfigError: it asks for none, or this process has none.
        Unreachable: nothing that is Ray answers at `address`.
    """
    found = guard_of(address)
    if found == "open" and not insecure:
        raise ConfigError(
            f"ADDRESS: the Ray cluster at {address!r} asks for no token: whoever reaches it runs programs as you. "
            f"Start its nodes with {MODE}=token and one token, or say --insecure"
        )
    if found == "token":
        if not (os.environ.get(TOKEN) or token_file().is_file()):
            raise ConfigError(f"ADDRESS: the Ray cluster at {address!r} asks for a token: put its into {token_file()}")
        ensure_token()
        os.environ[MODE] = "token"
    os.environ.pop(LOOPBACK, None)
    _read_environment_again(is_private=False)


def guard_of(address: str) -> Guard:
    """Whether a Ray cluster answers somebody without a token; asked in a process of its own, as Ray does so once only.

    Raises:
        Unreachable: nothing that is Ray answers there.
    """
    environment = {**own_environment(), MODE: "disabled"}
    environment.pop(TOKEN, None)
    environment.pop(LOOPBACK, None)
    command = command_of("orchestrator.security.ray_probe", address)
    try:
        done = subprocess.run(command, env=environment, timeout=PROBE_SECONDS, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        raise Unreachable(f"ADDRESS: what listens at {address!r} does not answer as Ray does") from None
    answer = done.stdout.strip().rpartition("\n")[2]
    if answer not in ("open", "token"):
        raise Unreachable(f"ADDRESS: no cluster answers at {address!r} (not Ray); start one, or leave it out")
    return answer  # type: ignore[return-value]


@contextmanager
def keep_cloud_secrets() -> Iterator[None]:
    """Have no cloud credentials in the environment for a while.

    Ray Tune copies them into the description of every trial's process, and Ray writes that into its logs. Nodes that
    write to a cloud's storage have their own; what else needs them says so by `with_cloud_secrets`.
    """
    kept = {name: os.environ.pop(name) for name in CLOUD_SECRETS if name in os.environ}
    try:
        yield
    finally:
        os.environ |= kept


def with_cloud_secrets(work: Callable[[], Result]) -> Callable[[], Result]:
    """Have work, in which no trial's process is made, done with the credentials of now inside `keep_cloud_secrets`.

    MLflow's writer starts there, and may have to write to a cloud.
    """
    kept = {name: os.environ[name] for name in CLOUD_SECRETS if name in os.environ}

    def done() -> Result:
        os.environ |= kept
        try:
            return work()
        finally:
            for name in kept:
                os.environ.pop(name, None)

    return done


def token_file() -> Path:
    """Where Ray reads its token, unless the environment holds it."""
    return Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token").expanduser()


def ensure_token() -> None:
    """Make Ray's token where there is none, and let nobody else read it: Ray itself makes it readable for everybody."""
    if os.environ.get(TOKEN):
        return
    path = token_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _write_once(path, secrets.token_hex(32))
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
    except OSError:  # a home that cannot be written: a token for this process and its children
        if not os.access(path, os.R_OK):
            os.environ[TOKEN] = secrets.token_hex(32)


def _write_once(path: Path, token: str) -> None:
    """Whole or not at all; what another process wrote meanwhile stays."""
    with NamedTemporaryFile("w", dir=path.parent, prefix=".auth-") as scratch:  # readable for its owner alone
        scratch.write(token)
        scratch.flush()
        try:
            os.link(scratch.name, path)
        except FileExistsError:
            return


def _read_environment_again(*, is_private: bool) -> None:
    """Ray reads both variables when it is first imported, which may be long ago."""
    if "ray" not in sys.modules:
        return
    from ray._private import ray_constants
    from ray._raylet import Config

    ray_constants.ENABLE_RAY_CLUSTER = not is_private
    Config.initialize("")
