"""What 4 bits save in memory, and a 2 x 2 table of precision and loop: measured cost keys side by side. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from operator import attrgetter
from typing import get_args

import numpy as np

from trainables.values.config import Loop, Precision, TrialConfig
from trainables.values.results import Cost, TrialResult

Predict = Callable[[TrialConfig], float | None]
"""Predicted peak of a config in MiB, None where the base's shape is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """4 bits against 16 bits at one loop, medians over pairs of cost keys that differ in nothing else.

    Attributes:
        rank: of all its pairs; None stands for all ranks.
        saved_mib, saved_share: of the 16-bit peak memory; negative where 4 bits need more.
        time_ratio: seconds a step at 4 bits over those at 16.
        saved_share_range, time_ratio_range: least and largest over the pairs.
    """

    loop: Loop
    rank: int | None
    n_pairs: int
    saved_mib: float
    saved_share: float
    saved_share_range: tuple[float, float]
    time_ratio: float
    time_ratio_range: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostCell:
    """One precision and loop; what was not measured may have been predicted."""

    precision: Precision
    loop: Loop
    cost: Cost | None
    predicted_peak_mib: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """The four cells of one config.

    Attributes:
        config: whose rank, targets, dropout, batch, length and engine all four share.
    """

    config: TrialConfig
    cells: tuple[CostCell, ...]


def measured_cells(trials: Iterable[TrialResult]) -> dict[str, tuple[TrialConfig, Cost]]:
    """Every measured cost key by its name, with the config that was first to bring it."""
    found: dict[str, tuple[TrialConfig, Cost]] = {}
    for trial in trials:
        if trial.cost:
            found.setdefault(trial.config.cost_key, (trial.config, trial.cost))
    return found


def _cells_by_device(trials: Iterable[TrialResult]) -> list[dict[str, tuple[TrialConfig, Cost]]]:
    """`measured_cells` of each kind of device, the one with most cells first."""
    groups: dict[str, list[TrialResult]] = {}
    for trial in trials:
        if trial.cost:
            groups.setdefault(trial.cost.device, []).append(trial)
    return sorted(map(measured_cells, groups.values()), key=len, reverse=True)


def savings(trials: Iterable[TrialResult]) -> tuple[Saving, ...]:
    """Of each loop over all ranks, then of each of its ranks; loops are never mixed.

    A pair are the two precisions of one cell, measured on one kind of device.
    """
    pairs: dict[tuple[Loop, int | None], list[tuple[Cost, Cost]]] = {}
    for cells in _cells_by_device(trials):
        for config, cost in cells.values():
            _, baseline = cells.get(config.at_other_precision.cost_key, (None, None))
            if config.precision == "nf4" and baseline:
                for rank in (None, config.rank):
                    pairs.setdefault((config.loop, rank), []).append((cost, baseline))
    order = sorted(pairs, key=lambda group: (get_args(Loop).index(group[0]), group[1] or 0))
    return tuple(_saving(loop, rank, pairs[loop, rank]) for loop, rank in order)


def _saving(loop: Loop, rank: int | None, pairs: Sequence[tuple[Cost, Cost]]) -> Saving:
    of = attrgetter("peak_memory_mib", "seconds_per_step")
    values = np.array([(of(cost), of(baseline)) for cost, baseline in pairs])  # (n_pairs, 2 precisions, 2 figures)
    (peaks, seconds), (baseline_peaks, baseline_seconds) = values.transpose(1, 2, 0)
    saved, ratios = baseline_peaks - peaks, seconds / baseline_seconds
    shares = saved / baseline_peaks
    return Saving(
        loop=loop,
        rank=rank,
        n_pairs=len(pairs),
        saved_mib=float(np.median(saved)),
        saved_share=float(np.median(shares)),
        saved_share_range=(float(shares.min()), float(shares.max())),
        time_ratio=float(np.median(ratios)),
        time_ratio_range=(float(ratios.min()), float(ratios.max())),
    )


def cost_table(trials: Iterable[TrialResult], preferred: TrialConfig | None, predict: Predict) -> CostTable | None:
    """The four cells around the config that has most of them; of equal ones `preferred`, then the earliest.

    All on the kind of device on which most cells were measured. None where nothing was.
    """
    cells = next(iter(_cells_by_device(trials)), None)
    if not cells:
        return None
    configs, _ = map(list, zip(*cells.values(), strict=True))
    if preferred is not None and preferred.cost_key in cells:
        configs.insert(0, preferred)
    config = max(configs, key=lambda config: sum(other.cost_key in cells for other in _four(config)))  # the first
    return CostTable(config=config, cells=tuple(_cell(other, cells, predict) for other in _four(config)))


def _four(config: TrialConfig) -> list[TrialConfig]:
    return [replace(config.at(p), loop=loop) for loop, p in product(get_args(Loop), get_args(Precision))]


def _cell(config: TrialConfig, cells: Mapping[str, tuple[TrialConfig, Cost]], predict: Predict) -> CostCell:
    _, cost = cells.get(config.cost_key, (None, None))
    predicted = None if cost else predict(config)
    return CostCell(precision=config.precision, loop=config.loop, cost=cost, predicted_peak_mib=predicted)
