"""A sweep in optuna-dashboard: its study, written from the ledger into an SQLite file of its own."""

import logging
from importlib.util import find_spec
from pathlib import Path

from orchestrator import settings as settings_file
from orchestrator.analysis.snapshot import newest
from orchestrator.ledger import Ledger
from orchestrator.search import study as studies
from orchestrator.settings import stored
from orchestrator.settings.command import python
from orchestrator.tracking.ui import refuse_port
from trainables.values.errors import ConfigError

logger = logging.getLogger(__name__)

HOST, PORT = "127.0.0.1", 8080
FILE = "optuna.db"
"""In a sweep's folder. Written anew each time: neither the search nor anything else reads it."""


def serve(name: str | None, root: Path, port: int | None) -> None:
    """Write a sweep's study and show it on the loopback address until interrupted.

    Args:
        name: of the sweep; default: the newest.
    Raises:
        ConfigError: there is no such sweep, nothing can listen on the port, or optuna-dashboard is not installed.
    """
    folder, port = settings_file.sweep_folder(name or newest(root), root), PORT if port is None else port
    settings = stored.load(folder)
    refuse_port(HOST, port)
    if find_spec("optuna_dashboard") is None:
        raise ConfigError(f"it needs optuna-dashboard: {python()} -m pip install -c constraints.txt optuna-dashboard")
    from optuna_dashboard import run_server

    ledger = Ledger(folder / "ledger.db", read_only=True)
    try:
        study = studies.write(settings, ledger.entries(), folder / FILE)
    finally:
        ledger.close()
    page = f"http://{HOST}:{port}/dashboard/studies/{study._study_id}"
    logger.info("optuna-dashboard: %s  (Ctrl-C ends it)", page)
    run_server(study._storage, host=HOST, port=port)
