"""What end a trial comes to by its first rungs, learned from the trials that came to theirs. Pure.

Domhan et al. 2015 (IJCAI, "Speeding up automatic hyperparameter optimization of deep neural networks by extrapolation
of learning curves", section 3) fit a function to the points of the trial itself. A trial here shows three points
before its end at most: what others came down by from the same rung says more. How far a trial still falls is
regressed on what it shows: its loss, and the fall since the rung before, which tells slow curves from fast ones.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orchestrator.objectives import OBJECTIVES

if TYPE_CHECKING:
    from trainables.values.results import Cost, Measurement

MIN_CURVES = 4
"""Trials that came to their end before anything is expected of another."""
MAX_CURVES = 200
"""Of them, the latest that are learned from: a longer history would cost more and say no more."""
RIDGE = 1.0
"""Of the regression, over standardized features: a few trials do not bend it much."""
MAX_DEVIATIONS = 2.5
"""Features farther from their mean count as so far: nothing is extrapolated to curves unlike all that were seen."""
HOPE = 1.75
"""Standard errors below what is expected that can be hoped for."""
SURPRISE = 0.75
"""Share of the largest surprise so far that can be hoped for once more."""


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


@dataclass(frozen=True, slots=True)
class Fall:
    """How far one objective falls from a rung to the end: ridge regression on a trial's loss and its last fall.

    Attributes:
        centre, scale: (2,), of the features.
        mean: of the falls.
        slope: (2,), change of the fall with each standardized feature.
        inverse: (2, 2), of the features' products and the ridge.
        n: trials that it is from.
        error: root mean square of what each of them fell beyond what the others let expect.
        surprise: the largest of these, at least 0.
    """

    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    mean: float
    slope: NDArray[np.float64]
    inverse: NDArray[np.float64]
    n: int
    error: float
    surprise: float

    def expected(self, features: NDArray[np.float64]) -> float:
        return float(self.mean + self.slope @ self._standardized(features))

    def hoped_for(self, features: NDArray[np.float64]) -> float:
        """Beyond what is expected, the larger of HOPE standard errors and of SURPRISE of the largest surprise."""
        own = self._standardized(features)
        error = self.error * np.sqrt(1 + 1 / self.n + own @ self.inverse @ own)
        return self.expected(features) + max(HOPE * float(error), SURPRISE * self.surprise)

    def _standardized(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip((features - self.centre) / self.scale, -MAX_DEVIATIONS, MAX_DEVIATIONS)


def fall_of(features: NDArray[np.float64], falls: NDArray[np.float64]) -> Fall:
    """Fit the falls of (n,) trials to their (n, 2) features."""
    centre, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.where(spread > 1e-12, spread, 1.0)
    own = np.clip((features - centre) / scale, -MAX_DEVIATIONS, MAX_DEVIATIONS)
    mean = falls.mean()
    inverse = np.linalg.inv(own.T @ own + RIDGE * np.eye(own.shape[1]))
    slope = inverse @ own.T @ (falls - mean)
    leverage = 1 / len(falls) + np.einsum("ni,ij,nj->n", own, inverse, own)
    left_out = (falls - mean - own @ slope) / (1 - np.minimum(leverage, 0.9))  # of a fit to the others
    error = float(np.sqrt(np.mean(left_out**2)))
    return Fall(centre, scale, float(mean), slope, inverse, len(falls), error, max(0.0, float(left_out.max())))


class LearningCurves:
    """Falls from each rung to the end, of every trial that came there and every objective that is no cost."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._falling = np.array([not is_cost(name) for name in self._names], dtype=bool)
        self._curves: dict[int, deque[NDArray[np.float64]]] = {}  # by step: (3, n_names), at the rung before, here, end
        self._falls: dict[int, list[Fall]] = {}  # by step, of the objectives that fall; made when asked for

    def learn(self, history: "Sequence[Measurement]", cost: "Cost") -> None:
        """Take in a trial that came to its end."""
        if not history:
            return
        rows = [losses_at(measurement, cost, self._names) for measurement in history]
        for place, measurement in enumerate(history[:-1]):
            curve = np.stack([rows[max(0, place - 1)], rows[place], rows[-1]])
            self._curves.setdefault(measurement.step, deque(maxlen=MAX_CURVES)).append(curve)
            self._falls.pop(measurement.step, None)

    def hopeful(self, history: "Sequence[Measurement]", cost: "Cost") -> NDArray[np.float64] | None:
        """Optimistic end of a trial by its rungs so far; None while too few came to theirs.

        No bound: a trial may fall by more.
        """
        return self._end(history, cost, Fall.hoped_for)

    def typical(self, history: "Sequence[Measurement]", cost: "Cost") -> NDArray[np.float64] | None:
        """The end to be expected; None while too few came to theirs."""
        return self._end(history, cost, Fall.expected)

    def _end(
        self, history: "Sequence[Measurement]", cost: "Cost", fall: Callable[[Fall, NDArray[np.float64]], float]
    ) -> NDArray[np.float64] | None:
        curves = self._curves.get(history[-1].step, ())
        if len(curves) < MIN_CURVES:
            return None
        if history[-1].step not in self._falls:
            table = np.stack(curves)[:, :, self._falling]  # (n_curves, 3, n_falling)
            before, here, end = table[:, 0], table[:, 1], table[:, 2]
            falls = [fall_of(_features(b, h), h - e) for b, h, e in zip(before.T, here.T, end.T, strict=True)]
            self._falls[history[-1].step] = falls
        losses = losses_at(history[-1], cost, self._names)
        before = losses_at(history[max(-2, -len(history))], cost, self._names)
        own = zip(self._falls[history[-1].step], before[self._falling], losses[self._falling], strict=True)
        losses[self._falling] -= [fall(one, _features(b, h)) for one, b, h in own]
        return losses


def _features(before: NDArray[np.float64], here: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 2), of losses at a rung and at the one before it."""
    return np.stack([here, before - here], axis=-1)
