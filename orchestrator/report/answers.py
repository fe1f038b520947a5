"""The model card's questions in words: Markdown for MODEL_CARD.md and README, or the figures as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.analysis.answers import Answers, Kept, Versus
from orchestrator.analysis.cells import Cell
from orchestrator.analysis.describe import describe, targets
from orchestrator.analysis.fit import Question, Recipes
from orchestrator.analysis.lost_share import LostShare
from orchestrator.analysis.verdict import COSINE
from orchestrator.report.render import ENVIRONMENT, render
from orchestrator.report.values import caveat_of
from trainables.cost.fit import Budget
from trainables.cost.shape import Shape
from trainables.models.families import FAMILIES, shape_in, shape_named
from trainables.values.config import BITS, TrialConfig

MAX_RATE_RATIO = 3.0
"""Best rates within this factor are called one: what LoRA's are said to keep within over ranks (Schulman et al. 2025,
"LoRA Without Regret", Thinking Machines)."""
N_LAYERS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSpread:
    """How far apart the best rates of some configs are.

    Attributes:
        ratio: highest over lowest.
        n_steps: between them, on the grid of the rates that were tried; a grid cannot tell less than one step.
    """

    ratio: float
    n_steps: int

    @property
    def text(self) -> str:
        """In words."""
        if self.n_steps == 0:
            return "are the same"
        apart = f"differ by a factor of {self.ratio:.3g}"
        if self.n_steps == 1:
            return f"{apart}, within one step of the grid"
        return f"{apart} ({'within' if self.ratio <= MAX_RATE_RATIO * (1 + 1e-4) else 'beyond'} {MAX_RATE_RATIO:g})"


def label(config: TrialConfig) -> str:
    """A cell in a table's heading."""
    kept = f" but {' '.join(config.keep_16bit)}" if config.keep_16bit else ""
    adapter = f"rank {config.rank}, alpha {config.alpha:g}, {targets(config)}"
    return f"{BITS[config.precision]}{kept}, {adapter}, {config.learning_rate:.0e}"


def share(lost: LostShare) -> str:
    """A share with its interval, or why there is none."""
    if lost.share is None:
        return f"none: {lost.withheld}"
    value = f"{100 * lost.share:.1f} %"
    if lost.low is None:
        return f"{value}, no interval: {lost.withheld}"
    return f"{value} ({100 * lost.low:.1f} to {100 * lost.high:.1f})"


def markdown(answers: Answers, layers: Mapping[str, Any] | None, commands: Sequence[str]) -> str:
    """The whole text.

    Args:
        layers: a sensitivity run over the same base and rows.
        commands: that did the sweeps.
    """
    return render(
        "answers.md",
        answers=answers,
        layers=layers,
        commands=commands,
        margin=answers.sweeps[0].settings.verdict_margin,
        caveat=caveat_of(answers.workload),
        cosine=COSINE,
        tried=_tried(answers),
        rate_spreads=rate_spreads(answers),
        paying=paying(answers),
        n_layers=N_LAYERS,
        four=_cells(answers, "four"),
        sixteen=_cells(answers, "sixteen"),
    )


def _cells(answers: Answers, side: str) -> list[Cell]:
    found: dict[TrialConfig, Cell] = {}
    for versus in answers.against_all:
        cell = getattr(versus, side)
        found[cell.config] = cell
    return list(found.values())


def _tried(answers: Answers) -> list[float]:
    return sorted(set().union(*(rates.loss_nats for rates in answers.rates)))


def rate_spreads(answers: Answers) -> dict[str, RateSpread]:
    """Of the best rates: between ranks at one precision, and between precisions at one rank."""
    between: dict[str, list[float]] = {}
    for rates in answers.rates:
        rate = rates.config.learning_rate
        between.setdefault(f"ranks, {BITS[rates.config.precision]}", []).append(rate)
        between.setdefault(f"precisions, rank {rates.config.rank}", []).append(rate)
    tried, found = _tried(answers), {}
    for what, best in between.items():
        if len(best) > 1:
            low, high = min(best), max(best)
            found[what] = RateSpread(ratio=high / low, n_steps=tried.index(high) - tried.index(low))
    return found


def bought_back_by(answers: Answers, cell: Cell) -> list[Versus]:
    """16-bit cells to which a 4-bit one loses no more than the margin, as far as can be told."""
    margin = answers.sweeps[0].settings.verdict_margin
    mine = [versus for versus in answers.against_all if versus.four.config == cell.config]
    return [versus for versus in mine if versus.lost.answer(margin) == "kept"]


def memory_share(kept: Kept) -> float | None:
    """What keeping parts at 16 bits takes of the memory that 4 bits save."""
    if kept.more_mib is None or not kept.saved_mib:
        return None
    return kept.more_mib / kept.saved_mib


def paying(answers: Answers) -> dict[str, list[dict[str, Any]]]:
    """Predicted: for the base of the sweeps and for sizes known by name, up to which row length 4 bits need less."""
    shapes: dict[str, Shape] = {}
    own = shape_in(Path(answers.workload.base_folder)) or shape_named(answers.workload.base_model)
    if own is not None:
        shapes[Path(answers.workload.base_model).name] = own
    for family in FAMILIES:
        shapes |= family.hub_shapes
    dtype = answers.workload.compute_dtype
    found: dict[str, list[dict[str, Any]]] = {}
    for name, shape in shapes.items():
        recipes = Recipes(asked=Question(), shape=shape, native_dtype="bfloat16" if dtype == "float32" else dtype)
        found[name] = []
        for row in recipes.paying_rows(Budget()):
            found[name].append(row | {"at_any_length": row["longest_row_tokens"] >= shape.context_tokens})
    return found


def to_dict(answers: Answers, layers: Mapping[str, Any] | None, commands: Sequence[str]) -> dict[str, Any]:
    """JSON-ready: each figure with the cells that it is of, in words."""
    return {
        "sweeps": [sweep.settings.name for sweep in answers.sweeps],
        "commands": list(commands),
        "base_model": answers.workload.base_model,
        "cells": [_cell(cell) for cell in answers.cells],
        "by_rank": [_versus(versus) for versus in answers.by_rank],
        "against_all": [_versus(versus) for versus in answers.against_all],
        "cosines": [{**asdict(found), "cell": describe(found.cell.config)} for found in answers.cosines],
        "sufficient_ranks": _sufficient(answers),
        "rates": [_rates(rates) for rates in answers.rates],
        "rate_spreads": {what: asdict(spread) for what, spread in rate_spreads(answers).items()},
        "kept": [_kept(kept) for kept in answers.kept],
        "tokens": [asdict(found) for found in answers.tokens],
        "savings": [asdict(saving) for saving in answers.savings],
        "paying_rows": paying(answers),
        "layers": layers["name"] if layers else None,
    }


def _cell(cell: Cell) -> dict[str, Any]:
    figures = {"test_loss_nats": cell.loss_nats, "peak_memory_mib": cell.peak_mib}
    return {"config": cell.config.to_dict(), "seeds": list(cell.runs), "sweeps": list(cell.sweeps), **figures}


def _versus(versus: Versus) -> dict[str, Any]:
    return {
        "four": describe(versus.four.config),
        "sixteen": describe(versus.sixteen.config),
        **asdict(versus.lost),
    }


def _sufficient(answers: Answers) -> list[dict[str, Any]]:
    found = []
    for (names, precision), rank in answers.sufficient.items():
        found.append({"targets": list(names), "precision": precision, "rank": rank.rank, "reason": rank.reason})
    return found


def _rates(rates: Any) -> dict[str, Any]:
    losses = {f"{rate:g}": loss for rate, loss in rates.loss_nats.items()}
    return {"best": describe(rates.config), "at_edge": rates.at_edge, "validation_loss_nats": losses}


def _kept(kept: Kept) -> dict[str, Any]:
    shares = {name: asdict(getattr(kept, name)) for name in ("bought", "lost_before", "lost_after")}
    memory = {"more_mib": kept.more_mib, "saved_mib": kept.saved_mib, "memory_share": memory_share(kept)}
    return {"kept": describe(kept.kept.config), **shares, **memory}


ENVIRONMENT.filters |= {"label": label, "share": share}
ENVIRONMENT.globals |= {"bought_back_by": bought_back_by, "memory_share": memory_share}
