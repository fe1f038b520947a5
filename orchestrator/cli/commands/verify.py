"""`verify`: whether a sweep is whole."""

import logging
from typing import Annotated

import typer

from orchestrator.cli.options import AsJson, NameOrNewest, named
from orchestrator.cli.output import print_json, print_text
from orchestrator.settings import ROOT, sweep_folder
from orchestrator.settings.command import command
from orchestrator.settings.stored import load

logger = logging.getLogger(__name__)


def verify(
    name: NameOrNewest = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="write settings, files, figures, report and MLflow again from the ledger")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check that a sweep lost and doubled nothing; exit code 1, and each difference on a line, where it did."""
    name = named(name)
    load(sweep_folder(name))
    from orchestrator.verify import checks  # with MLflow: no wrong name waits for that

    found = checks.run(name, ROOT, repair=repair)
    if as_json:
        print_json(found.to_dict())
    else:
        for difference in found.differences:
            print_text(str(difference))
        if not found.differences:
            print_text(found.summary)
        elif not repair and any(difference.part == "MLflow" for difference in found.differences):
            logger.info(f"what MLflow lacks is written by: {command()} sync {name}")
    if found.differences:
        raise typer.Exit(1)
