"""`report`: what a sweep came to."""

import json
import logging
from typing import Annotated

import typer

from orchestrator.cli.options import AsJson, NameOrNewest
from orchestrator.cli.sweeps import report_of
from orchestrator.report import digests
from orchestrator.report.content import newest
from orchestrator.report.render import compare
from orchestrator.settings import ROOT, sweep_folder

logger = logging.getLogger(__name__)


def report(
    name: NameOrNewest = None,
    other: Annotated[str | None, typer.Argument(help="a second sweep to put beside it")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a sweep came to, from its ledger alone; writes report.md and report.html into its folder."""
    if other is None:
        _report_one(name or newest(ROOT), as_json)
        return
    pair = [report_of(sweep)[0] for sweep in (str(name), other)]
    print(json.dumps({"sweeps": [one.to_dict() for one in pair]}) if as_json else compare(*pair))


def _report_one(name: str, as_json: bool) -> None:
    found, result = report_of(name)
    folder = sweep_folder(name)
    from orchestrator.report import outputs  # which draws: no wrong name waits for that

    pictures = outputs.draw(result, folder) if result else []
    files = outputs.write_report(found, folder)
    digests.keep([*pictures, *files], folder)
    print(json.dumps(found.to_dict()) if as_json else files[0].read_text(encoding="utf-8"))
    logger.info(f"to open in a browser: {files[1]}")
