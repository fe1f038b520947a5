"""`card`: the model card of a sweep."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.cli import answered
from orchestrator.cli.options import AsJson, NameOrNewest, named
from orchestrator.cli.output import print_json
from orchestrator.report import card as cards
from orchestrator.report.card import layers_of
from orchestrator.report.content import report_of
from orchestrator.settings import ROOT
from trainables.values.errors import ConfigError

logger = logging.getLogger(__name__)

LICENCE_HELP = "of the rows, as the hub names licences (cc-by-nc-4.0), where they are none that this program knows"


def card(
    name: NameOrNewest = None,
    output: Annotated[Path, typer.Option(help="file to write")] = Path("MODEL_CARD.md"),
    licence: Annotated[str | None, typer.Option("--license", help=LICENCE_HELP)] = None,
    answers: Annotated[str | None, typer.Option(help="sweeps whose answers it holds: NAME,NAME")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the file where there is one")] = False,
    as_json: AsJson = False,
) -> None:
    """Fill the model card from a sweep's ledger, whatever the sweep has measured so far."""
    found = report_of(SweepSnapshot.find(named(name)))
    if output.exists() and not force:
        raise ConfigError(f"OUTPUT: {output} exists; say --force to replace it, or name another file with --output")
    text = answered.markdown(answers.split(",")) if answers else None
    card = cards.card_of(found, layers_of(ROOT, found.workload), licence=licence, answers=text)
    written = cards.write(card, output)
    logger.info(f"wrote {written}")
    if as_json:
        print_json({"name": found.name, "card": str(written)})
