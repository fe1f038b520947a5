"""How far objectives fall from a rung to a trial's end, learned from the trials that completed. Pure.

Domhan et al. 2015 (IJCAI, "Speeding up automatic hyperparameter optimization of deep neural networks by extrapolation
of learning curves", section 3) fit a function to the points of the trial itself. A trial here shows three points
before its end at most: what the others came down by from the same rung says more.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orchestrator.objectives import OBJECTIVES

if TYPE_CHECKING:
    from trainables.values.results import Cost, Measurement

MIN_CURVES = 4
"""Completed trials before anything is expected of another."""
MAX_CURVES = 200
"""Completed trials, the latest, whose median is taken: a longer history would cost more and say no more."""


def measured(objectives: Sequence[str]) -> tuple[str, ...]:
    """What a rung shows of the objectives: similarities are not known there, held-out loss stands in for them."""
    return tuple(dict.fromkeys("eval_loss_nats" if OBJECTIVES[o].source == "similarity" else o for o in objectives))


def is_cost(objective: str) -> bool:
    """Whether it belongs to the cost key, and so is the same at all rungs of a trial."""
    return OBJECTIVES[objective].source == "cost"


def losses_at(measurement: "Measurement", cost: "Cost", names: Sequence[str]) -> NDArray[np.float64]:
    """(n_names,), all minimised: what was measured at the rung, and what belongs to the cost key."""
    return np.array(_values(measurement, cost, names), dtype=np.float64)


def _values(measurement: "Measurement", cost: "Cost", names: Sequence[str]) -> tuple[float, ...]:
    return tuple(getattr(cost if is_cost(name) else measurement, name) for name in names)


class LearningCurves:
    """Value at the end over value at a rung, of every completed trial and objective."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._ratios: dict[int, deque[tuple[float, ...]]] = {}
        self._least: dict[int, tuple[float, ...]] = {}

    def learn(self, history: "Sequence[Measurement]", cost: "Cost") -> None:
        """Take in a completed trial."""
        if not history:
            return
        *rungs, last = history
        end = _values(last, cost, self._names)
        for measurement in rungs:
            here = _values(measurement, cost, self._names)
            ratio = tuple(e / h if h > 0 else 1.0 for e, h in zip(end, here, strict=True))
            self._ratios.setdefault(measurement.step, deque(maxlen=MAX_CURVES)).append(ratio)
            self._least[measurement.step] = tuple(map(min, self._least.get(measurement.step, ratio), ratio))

    def hopeful(self, measurement: "Measurement", cost: "Cost") -> NDArray[np.float64] | None:
        """Optimistic end: what a trial shows times the least ratio of end to rung so far; None while too few completed.

        No bound: a trial may fall by more than every completed one did.
        """
        if len(self._ratios.get(measurement.step, ())) < MIN_CURVES:
            return None
        return losses_at(measurement, cost, self._names) * self._least[measurement.step]

    def typical(self, measurement: "Measurement", cost: "Cost") -> NDArray[np.float64] | None:
        """The end to be expected, by the median fall; None while too few completed."""
        ratios = self._ratios.get(measurement.step, ())
        if len(ratios) < MIN_CURVES:
            return None
        return losses_at(measurement, cost, self._names) * np.median(ratios, axis=0)
