"""`best`: the one config to use, ready to be used."""

from typing import Annotated

import typer

from orchestrator.analysis import choice
from orchestrator.analysis.overview import state_of
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.cli.options import AsJson, Knee, MaxMemory, NameOrNewest, named
from orchestrator.cli.output import print_json, print_text
from orchestrator.report.recipe import peft_code, recipe

As = Annotated[str | None, typer.Option("--as", help="its settings as YAML of axolotl, trl or llama-factory, alone")]


def best(
    name: NameOrNewest = None,
    max_memory: MaxMemory = None,
    knee: Knee = False,
    program: As = None,
    as_json: AsJson = False,
) -> None:
    """Name one config: the cheapest with the lowest validation loss, within noise."""
    limit = None if max_memory is None else choice.mib_of(max_memory)
    sweep = SweepSnapshot.find(named(name))
    found = choice.choose(sweep, max_memory_mib=limit, at_knee=knee)
    config, state = found.trial.config, state_of(sweep)
    code = peft_code(config, sweep) if program is None else recipe(program, config, sweep)
    if as_json:
        print_json(found.to_dict() | {"state": state, "code": code})
    elif program is None:
        if state in ("running", "stopped"):
            print_text(f"So far, as the sweep is {state}:")
        print_text(f"{found.text}\n")
        print(code, end="")
    else:
        print(code, end="")
