"""MLflow's pages over a sweep's store: on the loopback address; elsewhere only for named hosts, behind a password."""

import os
import secrets
import socket
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from orchestrator.security.addresses import refuse_secrets
from orchestrator.settings.command import python
from orchestrator.tracking.store import CLIENT, UI_PORT, store_file, store_uri
from trainables.values.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PASSWORD, AUTH_CONFIG, SESSION_KEY = (
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_AUTH_CONFIG_PATH",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
)
MIN_PASSWORD_CHARS = 12
MAX_PORT = 65535
AUTH = """[mlflow]
default_permission = READ
database_uri = sqlite:///{database}
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


def serve(root: Path, host: str, port: int, allowed_hosts: str | None) -> None:
    """Become MLflow's server; does not return.

    Raises:
        ConfigError: see `arguments`; or the store is of another MLflow's schema.
    """
    from orchestrator.tracking.client import check_schema  # with MLflow, which takes seconds

    check_schema(store_file(root))
    given = arguments(root, host, port, allowed_hosts)
    os.environ |= CLIENT | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes for jobs nobody has here
    os.environ["PYTHONSAFEPATH"] = "1"  # no file of this folder stands for a module of the server, nor of its children
    if "--app-name" in given:
        os.environ.setdefault(AUTH_CONFIG, str(_auth_config(root)))
        os.environ.setdefault(SESSION_KEY, secrets.token_hex(32))
    os.execv(sys.executable, [sys.executable, *given])


def from_elsewhere(environment: Mapping[str, str], host: str, port: int) -> str | None:
    """How to see the pages of a machine that one is on over ssh; None where one is not, or where others reach it."""
    if host not in LOOPBACK or "SSH_CONNECTION" not in environment:
        return None
    *_, server, _ = environment["SSH_CONNECTION"].split()  # client, its port, server, its port (ssh(1))
    place = f"{environment['USER']}@{server}" if environment.get("USER") else server
    return f"from your own machine: `ssh -L {port}:127.0.0.1:{port} {place}`, then the same address in its browser"


def refuse_port(host: str, port: int) -> None:
    """Refuse a port before this process becomes a server: that would end without an error of its own.

    Raises:
        ConfigError: nothing can listen there; the message names the port, or the host where that is no name here.
    """
    if not 1 <= port <= MAX_PORT:
        raise ConfigError(f"PORT must be 1 to {MAX_PORT}, got {port}")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: one that ended is no fault
            listener.bind(place)
    except socket.gaierror as error:
        raise ConfigError(f"HOST: {host!r} is no address ({error.strerror})") from None
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise ConfigError(f"PORT: nothing can listen on {host}:{port} ({reason}); choose another PORT") from None


def arguments(root: Path, host: str, port: int, allowed_hosts: str | None) -> list[str]:
    """What Python is started with to serve the store under `root`.

    Args:
        allowed_hosts: comma-separated names under which browsers may ask for another host than this machine.
    Raises:
        ConfigError: there is no store, or another host than this machine without names and a password.
    """
    for field, given in (("host", host), ("allowed_hosts", allowed_hosts or "")):
        refuse_secrets(field, given)
    if not store_file(root).is_file():
        raise ConfigError(f"there is no {store_file(root)} yet; run a sweep first")
    names = f"localhost,localhost:*,127.0.0.1,127.0.0.1:*,[[]::1]:{port}"
    given = ["-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    given += ["--uvicorn-opts", "--log-level critical"]  # else a line a request, and a traceback where Ctrl-C ends it
    if host not in LOOPBACK:
        names = _checked(host, allowed_hosts)
        given += ["--app-name", "basic-auth"]
    given += ["--allowed-hosts", names, "--backend-store-uri", store_uri(root)]
    return [*given, "--default-artifact-root", str((root / "artifacts").resolve())]


def _checked(host: str, allowed_hosts: str | None) -> str:
    """The names, if a server on `host` may be started at all."""
    names = [name.strip() for name in (allowed_hosts or "").split(",") if name.strip()]
    if not names or any("*" in name for name in names):
        raise ConfigError(
            f"HOST is {host}, which others reach: name with ALLOWED_HOSTS (--allowed-hosts, commas between them, no *) "
            f"under which addresses they may, e.g. {host}:{UI_PORT}"
        )
    if not os.environ.get(AUTH_CONFIG) and len(os.environ.get(PASSWORD, "")) < MIN_PASSWORD_CHARS:
        raise ConfigError(
            f"HOST is {host}, which others reach: put a password of {MIN_PASSWORD_CHARS} or more characters for the "
            f"user admin into {PASSWORD}, or the path of MLflow's own settings into {AUTH_CONFIG}"
        )
    if find_spec("flask_wtf") is None:
        raise ConfigError(
            f"HOST is {host}: its password needs Flask-WTF; {python()} -m pip install -c constraints.txt '.[auth]'"
        )
    return ",".join(names)


def _auth_config(root: Path) -> Path:
    """MLflow's settings for users and passwords, which lie beside the store."""
    path = root / "mlflow_auth.ini"
    path.write_text(AUTH.format(database=(root / "mlflow_auth.db").resolve()), encoding="utf-8")
    return path
