"""`report`: what a sweep came to."""

import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.cli.closing import report_text
from orchestrator.cli.front_table import front_table
from orchestrator.cli.options import AsJson, NameOrNewest, named
from orchestrator.cli.output import print_json, print_markdown
from orchestrator.report import digests
from orchestrator.report.content import report_of
from orchestrator.report.render import compare
from orchestrator.settings import ROOT, stored

logger = logging.getLogger(__name__)


def report(
    name: NameOrNewest = None,
    other: Annotated[str | None, typer.Argument(help="a second sweep to put beside it")] = None,
    as_json: AsJson = False,
) -> None:
    """Say in eight lines what a sweep came to, from its ledger alone; writes report.md and report.html."""
    if other is None:
        _report_one(named(name), as_json)
    else:
        _report_two([SweepSnapshot.find(str(name)), SweepSnapshot.find(other)], as_json)


def _report_two(sweeps: Sequence[SweepSnapshot], as_json: bool) -> None:
    """In a pipe the whole in Markdown; on a terminal with fronts that fit it."""
    first, second = map(report_of, sweeps)
    if as_json:
        print_json({"sweeps": [first.to_dict(), second.to_dict()]})
        return
    text = compare(first, second)
    if not sys.stdout.isatty():
        print_markdown(text)
        return
    head, _, _ = text.partition("\n## Front of ")
    print_markdown(head)
    console = Console()
    for sweep in sweeps:
        console.print(f"\nFront of {sweep.settings.name}", style="bold", highlight=False)
        console.print(front_table(sweep.front, console.width, sweep.lost))


def _report_one(name: str, as_json: bool) -> None:
    snapshot = SweepSnapshot.find(name)
    found, recorded = report_of(snapshot), stored.is_recorded(snapshot.folder)
    folder = ROOT / "cache" / "reports" / name if recorded else snapshot.folder
    from orchestrator.figures import gallery  # which draw: no wrong name waits for that
    from orchestrator.report import outputs

    folder.mkdir(parents=True, exist_ok=True)
    figures = gallery.of_sweep(snapshot)
    pictures = outputs.draw(snapshot, figures, folder) if found.states.get("completed") else []
    files = outputs.write_report(snapshot, found, figures, folder)
    if not recorded:
        digests.keep([*pictures, *files], folder)
    if as_json:
        print_json(found.to_dict())
    else:
        print(report_text(found, snapshot, sys.stdout))
    logger.info(f"the whole report: {files[1]}")
