"""The answers that several sweeps give, with the commands that did the sweeps."""

import shlex
from collections.abc import Sequence
from typing import Any

import search_spaces
from orchestrator.analysis.answers import answers_of
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.cli.options import FLAGS
from orchestrator.driver.plan import AUTO
from orchestrator.report import answers as texts
from orchestrator.report.card import layers_of
from orchestrator.settings import ROOT, SweepSettings
from orchestrator.settings.command import SCRIPT

CHOSEN = frozenset({"space", "name", "device", "objectives", "baseline_seeds"})
"""Settings that are said in their own way, or that the machine chooses."""


def markdown(names: Sequence[str]) -> str:
    """The text of `answers`.

    Raises:
        ConfigError: there is no such sweep, or they are of different bases, rows or arithmetic.
    """
    return texts.markdown(*_found(names))


def to_dict(names: Sequence[str]) -> dict[str, Any]:
    """The figures, JSON-ready; raises as `markdown` does."""
    return texts.to_dict(*_found(names))


def _found(names: Sequence[str]) -> tuple[Any, ...]:
    found = answers_of([SweepSnapshot.find(name) for name in names])
    return found, layers_of(ROOT, found.workload), [run_command(sweep.settings) for sweep in found.sweeps]


def run_command(settings: SweepSettings) -> str:
    """The `run` that does a sweep again: its space, base and rows, and what was said beside the defaults."""
    space = settings.space.name  # of a space from a file the file's own, wherever that lies now
    words = ["run", "--name", settings.name, "--space", space if space in search_spaces.names() else f"{space}.yaml"]
    if settings.objectives != SweepSettings.model_fields["objectives"].default:
        for objective in settings.objectives:
            words += [FLAGS["objectives"][0], objective]
    for name, field in SweepSettings.model_fields.items():
        value = getattr(settings, name)
        if name in CHOSEN or value == AUTO[settings.device].get(name, field.default):
            continue
        if name == "n_trials" and settings.space.method == "grid" and value == settings.space.n_points:
            continue
        flag = FLAGS.get(name, (f"--{name.replace('_', '-')}",))[0]
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{name}")
        else:
            words += [flag, ",".join(value) if isinstance(value, tuple) else f"{value}"]
    return f"{SCRIPT} {shlex.join(words)}"
