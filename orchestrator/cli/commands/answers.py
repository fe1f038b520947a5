"""`answers`: the model card's questions, from the grids of several sweeps."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.analysis.answers import answers_of
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.cli.options import FLAGS, AsJson
from orchestrator.driver.plan import AUTO
from orchestrator.report import answers as texts
from orchestrator.report.card import layers_of
from orchestrator.settings import ROOT, SweepSettings
from orchestrator.settings.command import SCRIPT
from trainables.values.files import write_whole

CHOSEN = frozenset({"space", "name", "device", "objectives", "baseline_seeds"})
"""Settings that are said in their own way, or that the machine chooses."""


def answers(
    names: Annotated[list[str], typer.Argument(help="sweeps over one base and its rows, grids among them")],
    output: Annotated[Path | None, typer.Option(help="file to write the text to, too")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer the model card's questions from the grids of several sweeps: what do 4 bits cost, what helps?"""
    found = answers_of([SweepSnapshot.read(name) for name in names])
    layers = layers_of(ROOT, found.workload)
    said = [run_command(sweep.settings) for sweep in found.sweeps]
    if as_json:
        print(json.dumps(texts.to_dict(found, layers, said)))
        return
    text = texts.markdown(found, layers, said)
    if output is not None:
        write_whole(output, text)
    print(text, end="")


def run_command(settings: SweepSettings) -> str:
    """The `run` that does a sweep again: its space, base and rows, and what was said beside the defaults."""
    words = ["run", "--name", settings.name, "--space", settings.space.name]
    for name, field in SweepSettings.model_fields.items():
        value = getattr(settings, name)
        if name in CHOSEN or value == field.default or AUTO[settings.device].get(name) == value:
            continue
        if name == "n_trials" and settings.space.method == "grid" and value == settings.space.n_points:
            continue
        flag = FLAGS.get(name, (f"--{name.replace('_', '-')}",))[0]
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{name}")
        else:
            words += [flag, ",".join(value) if isinstance(value, tuple) else f"{value}"]
    return f"{SCRIPT} {shlex.join(words)}"
