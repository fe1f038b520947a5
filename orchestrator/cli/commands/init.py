"""`init`: files of one's own to begin with."""

import json
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from orchestrator.cli.options import AsJson
from orchestrator.cli.output import print_json, print_text
from orchestrator.cli.template import SPACE as TEMPLATE
from orchestrator.settings.command import command
from trainables.demo import ROWS_FILE
from trainables.values.errors import ConfigError, did_you_mean
from trainables.values.files import write_whole

SPACE, ROWS = "space.yaml", "rows.jsonl"
PARTS = ("space", "rows")


def init(
    folder: Annotated[Path, typer.Argument(help="to write them into")] = Path(),
    only: Annotated[str | None, typer.Option(help="space or rows: that file alone")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a commented search space and rows to begin with, which run as they are."""
    if only not in (None, *PARTS):
        raise ConfigError(f"--only: no file {only!r}{did_you_mean(only, PARTS)}")
    space = None if only == "rows" else folder / SPACE
    rows = None if only == "space" else folder / ROWS
    for file in filter(None, (space, rows)):
        if file.exists():
            raise ConfigError(f"FOLDER: {file} exists; name another folder, move it away, or say --only for the other")
    folder.mkdir(parents=True, exist_ok=True)
    words, said = [f"{command()} run"], []
    if space:
        write_whole(space, TEMPLATE)
        words.append(f"--space {quote(str(space))}")
        said.append(f"{space}: what is searched, with every other setting as a comment")
    if rows:
        found = json.loads(ROWS_FILE.read_text(encoding="utf-8"))
        write_whole(rows, "".join(json.dumps(row) + "\n" for row in found))
        words.append(f"--data {quote(str(rows))}")
        said.append(f"{rows}: rows as JSON Lines; put yours in their place, one object a line with the same keys")
    dry_run = " ".join([*words, "--dry-run"])
    if as_json:
        print_json({"space": space and str(space), "data": rows and str(rows), "dry_run": dry_run})
        return
    print_text("\n".join([*said, f"look before you run: {dry_run}"]))
