"""`ui`: MLflow's pages, or optuna-dashboard."""

import logging
import os
from typing import Annotated

import typer

from orchestrator.settings import ROOT
from orchestrator.tracking import ui as pages
from orchestrator.tracking.store import UI_PORT, experiment_page, store_file

logger = logging.getLogger(__name__)


def ui(
    name: Annotated[str | None, typer.Argument(help="of the sweep for --optuna; default: the newest")] = None,
    optuna: Annotated[bool, typer.Option("--optuna", help="optuna-dashboard over one sweep instead")] = False,
    port: Annotated[int | None, typer.Option(help="to listen on; default: 5000, of --optuna 8080")] = None,
    host: Annotated[str, typer.Option(help="another needs --allowed-hosts and a password")] = "127.0.0.1",
    allowed_hosts: Annotated[
        str | None, typer.Option(help="under which others may ask, comma-separated: NAME:PORT")
    ] = None,
) -> None:
    """Open MLflow over mlflow_runs/mlflow.db, on this machine only unless told otherwise."""
    if optuna:  # its imports take longer than MLflow's refusal of a port
        from orchestrator.tracking import dashboard

        dashboard.serve(name, ROOT, port)
        return
    port = UI_PORT if port is None else port
    pages.arguments(ROOT, host, port, allowed_hosts)
    pages.refuse_port(host, port)
    logger.info(f"MLflow: http://{host}:{port}/{experiment_page(store_file(ROOT))}  (Ctrl-C ends it)")
    if line := pages.from_elsewhere(os.environ, host, port):
        logger.info(line)
    pages.serve(ROOT, host, port, allowed_hosts)
