"""`init`: files of one's own to begin with."""

import json
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from orchestrator.cli.options import AsJson
from orchestrator.cli.output import print_json
from orchestrator.cli.template import SPACE as TEMPLATE
from orchestrator.settings.command import command
from trainables.demo import ROWS_FILE
from trainables.values.errors import ConfigError
from trainables.values.files import write_whole

SPACE, ROWS = "space.yaml", "rows.jsonl"


def init(
    folder: Annotated[Path, typer.Argument(help="to write them into")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Write a commented search space and rows to begin with, which run as they are."""
    files = [folder / SPACE, folder / ROWS]
    for file in files:
        if file.exists():
            raise ConfigError(f"FOLDER: {file} exists; name another folder, or move it away")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(files[0], TEMPLATE)
    write_whole(files[1], "".join(json.dumps(row) + "\n" for row in json.loads(ROWS_FILE.read_text(encoding="utf-8"))))
    words = f"--space {quote(str(files[0]))} --data {quote(str(files[1]))}"
    if as_json:
        print_json({"space": str(files[0]), "data": str(files[1]), "dry_run": f"{command()} run {words} --dry-run"})
        return
    print(f"{files[0]}: what is searched, with every other setting as a comment")
    print(f"{files[1]}: rows as JSON Lines; put yours in their place, one object a line with the same keys")
    print(f"look before you run: {command()} run {words} --dry-run")
