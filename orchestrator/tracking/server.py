"""An MLflow server as it is before MLflow is imported: asked for its version alone."""

from importlib.metadata import version
from urllib.parse import urlsplit

import requests

from orchestrator.settings.command import command
from orchestrator.tracking.store import LOOK_SECONDS
from trainables.values.errors import ConfigError


def check_server(uri: str) -> None:
    """Whether the MLflow server at an http address is one that this client can speak to; one that is away may come.

    Raises:
        ConfigError: it is of another major version.
    """
    if not uri.startswith(("http://", "https://")):
        return
    try:
        answer = requests.get(uri.rstrip("/") + "/version", timeout=LOOK_SECONDS)
    except requests.RequestException:
        return
    ours, theirs = version("mlflow"), answer.text.strip()
    if answer.ok and theirs[:1].isdigit() and theirs.partition(".")[0] != ours.partition(".")[0]:
        where = urlsplit(uri)
        raise ConfigError(
            f"tracking_uri: the MLflow server at {where.hostname}:{where.port or ''} is version {theirs[:20]}, here is "
            f"{ours}; give a server of the same major version, or leave it out and run `{command()} sync` later"
        )
