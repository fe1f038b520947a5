"""What a sweep was asked and what its trials ran on: settings.json, the ledger's workload and each trial agree."""

from collections.abc import Iterator
from typing import Any

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.verify.ledger import Difference
from trainables.values.config import RANDOM_PREFIX, Weights

SHOWN_CHARS = 80
"""Of a value that differs."""


def of_settings(kept: SweepSnapshot) -> Iterator[Difference]:
    """settings.json is what the sweep began with."""
    for name, then, now in kept.edits:
        text = f"{name} is {_short(now)}, the sweep began with {_short(then)}"
        yield Difference(part="settings.json", text=text)


def of_workload(kept: SweepSnapshot) -> Iterator[Difference]:
    """The base model and the rows are those that were asked for, with the weights that every trial ran on."""
    for text in _of_workload(kept):
        yield Difference(part="ledger", text=text)


def _of_workload(kept: SweepSnapshot) -> Iterator[str]:
    workload = kept.workload
    if workload is None:
        return
    for name in ("base_model", "data"):
        found, asked = getattr(workload, name), getattr(kept.settings, name)
        if found != asked:
            yield f"{name} of its workload is {found!r}, {asked!r} was asked for"
    if workload.weights not in _kinds(workload.base_model):
        yield f"weights of its workload are {workload.weights!r}, which those of {workload.base_model!r} are not"
    for name in ("weights", "compute_dtype"):
        ours = getattr(workload, name)
        others = [t for t in kept.trials if t.environment.get(name, ours) != ours]
        if others:
            first, more = others[0], f" (and {len(others) - 1} trials more)" if len(others) > 1 else ""
            yield f"trial {first.number} ran on {name} {first.environment[name]!r}, its workload has {ours!r}{more}"


def _kinds(base_model: str) -> tuple[Weights, ...]:
    """What the weights of a base model can be, see trainables.models.base_model.find."""
    if base_model == "demo":
        return ("demo",)
    return ("random",) if base_model.startswith(RANDOM_PREFIX) else ("pretrained", "stand-in")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."
