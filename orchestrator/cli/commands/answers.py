"""`answers`: the model card's questions, from the grids of several sweeps."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import answered
from orchestrator.cli.options import AsJson
from orchestrator.cli.output import print_json, print_markdown
from orchestrator.settings.command import command
from trainables.values.errors import ConfigError
from trainables.values.files import write_whole


def answers(
    names: Annotated[
        list[str] | None, typer.Argument(help="sweeps over one base and its rows, grids among them")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="file to write the text to, too")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer the model card's questions from the grids of several sweeps: what do 4 bits cost, what helps?

    For example: qlora-sweep answers smollm2-grid smollm2-rates
    """
    if not names:
        raise ConfigError(f"NAMES: say which sweeps, grids among them: {command()} answers smollm2-grid smollm2-rates")
    if as_json:
        print_json(answered.to_dict(names))
        return
    text = answered.markdown(names)
    if output is not None:
        write_whole(output, text)
    print_markdown(text.removesuffix("\n"))
