"""What commands print on standard output: lines, or with `--json` one JSON object, see orchestrator.cli.results."""

import json
import re
import sys
from collections.abc import Mapping
from typing import Any

from orchestrator.cli.lines import for_stream

SCHEMA_VERSION = 1
"""Of all these objects. It rises when a key goes, or means another thing; keys may come without that."""
FENCED = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)
"""Code in Markdown: folded anew, a command would be none that one can type."""
CUT = "…"
"""What a table shows in place of the rest of a cell that does not fit."""


def print_text(text: str) -> None:
    """Print lines of a result."""
    print(for_stream(text, sys.stdout))


def print_markdown(text: str) -> None:
    """Print Markdown: on a terminal laid out where its tables fit that, else as it is; commands always as they are."""
    if not sys.stdout.isatty():
        print_text(text)
        return
    for part in filter(str.strip, FENCED.split(text)):
        if part.startswith("```"):
            print_text("\n".join(part.splitlines()[1:-1]))
        else:
            _print_laid_out(part)
        print()


def _print_laid_out(text: str) -> None:
    from rich.console import Console
    from rich.markdown import Markdown  # slow, which no other command waits for

    console = Console()
    with console.capture() as laid_out:
        console.print(Markdown(text))
    if CUT not in laid_out.get() or CUT in text:
        print(laid_out.get(), end="")
    else:
        print_text(text.strip())


def print_json(result: Mapping[str, Any]) -> None:
    """Print a result."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **result}), flush=True)


def print_error(kind: str, message: str, exit_code: int) -> None:
    """Print what ended a command without a result, where JSON was asked for."""
    if "--json" in sys.argv[1:]:
        print_json({"error": {"kind": kind, "message": message}, "exit_code": exit_code})
