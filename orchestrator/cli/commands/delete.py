"""`delete`: a sweep and all that is of it."""

import logging
import shutil
import sys
from typing import Annotated

import typer

from orchestrator.cli.lines import for_stream
from orchestrator.cli.options import AsJson, Name
from orchestrator.cli.output import print_json, print_text
from orchestrator.ledger.ownership import owned, owner_of
from orchestrator.settings import ROOT, SweepSettings, sweep_folder
from orchestrator.settings.command import command
from orchestrator.settings.stored import load
from orchestrator.tracking.store import store_file
from trainables.values.errors import ConfigError

logger = logging.getLogger(__name__)


def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a sweep: its folder, with ledger and adapters, and its runs in MLflow."""
    settings, folder = load(sweep_folder(name), offers=False), sweep_folder(name)
    if (owner := owner_of(folder)) is not None:
        raise ConfigError(f"NAME: process {owner} runs sweep {name!r}; first: {command()} stop {name}")
    if not yes and not sys.stdin.isatty():
        raise ConfigError(f"--yes: nobody can be asked here whether {folder} may go; say --yes")
    question = for_stream(f"Delete {folder} with all its trials and adapters? [y/N]", sys.stderr)
    if not yes and not _agreed(question):
        logger.info("nothing was deleted")
        raise typer.Exit(1)
    with owned(folder):
        n_runs = _runs_deleted(settings)
        shutil.rmtree(folder)
    if as_json:
        print_json({"name": name, "deleted": str(folder), "mlflow_runs": n_runs})
    else:
        print_text(f"deleted {folder} and {n_runs} runs in MLflow")


def _agreed(question: str) -> bool:
    """The answer; who leaves the question by Ctrl-C or the end of input has not agreed."""
    try:
        return typer.confirm(question, show_default=False, err=True)
    except typer.Abort:
        return False


def _runs_deleted(settings: SweepSettings) -> int:
    """How many runs are gone from MLflow; where that cannot be read a line says so, and the sweep goes all the same."""
    if settings.tracking_uri is None and not store_file(ROOT).is_file():
        return 0
    from orchestrator.tracking import deletion  # brings MLflow: no wrong name waits for that

    try:
        return deletion.delete(settings, ROOT)
    except Exception as error:
        from orchestrator.security.redaction import reason_of

        logger.warning(f"its runs stay in MLflow ({reason_of(error, settings.tracking_uri)})")
        return 0
