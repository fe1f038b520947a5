"""Trials as columns, so that a figure places, colours and rings whole columns."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.front import objective_value
from orchestrator.analysis.noise import BUT_SEED, Noise
from orchestrator.figures.points import point_of
from orchestrator.figures.style import PRECISION_COLOURS
from orchestrator.objectives import OBJECTIVES

if TYPE_CHECKING:
    from orchestrator.analysis.snapshot import SweepSnapshot
    from trainables.values.config import Precision
    from trainables.values.results import TrialResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Trials, and of each what most figures ask for.

    Attributes:
        trials: (n_trials,), objects.
        precision: (n_trials,), "16bit" or "nf4".
        on_front: (n_trials,), whether each is on the sweep's Pareto front.
        searched: (n_trials,), whether it is a point of the space; not so a baseline outside it, or a seed replicate.
        repeated: (n_trials,), whether it is the first of several that differ in nothing but the seed.
        lost: (n_trials,), whether its verdict says that 4 bits lose more than the margin.
    """

    trials: NDArray[np.object_]
    precision: NDArray[np.str_]
    on_front: NDArray[np.bool_]
    searched: NDArray[np.bool_]
    repeated: NDArray[np.bool_]
    lost: NDArray[np.bool_]

    @classmethod
    def of(cls, trials: "Sequence[TrialResult]", snapshot: "SweepSnapshot") -> "Columns":
        table = np.empty(len(trials), dtype=object)
        table[:] = trials
        precision = np.array([trial.config.precision for trial in trials], dtype=str)
        on_front = np.array([trial.key in snapshot.front.keys for trial in trials], dtype=bool)
        searched = np.array([_is_searched(trial, snapshot) for trial in trials], dtype=bool)
        groups: dict[Any, list[int]] = {}
        for place, trial in enumerate(trials):
            groups.setdefault(BUT_SEED(trial.config), []).append(place)
        repeated = np.zeros(len(trials), dtype=bool)
        repeated[[first for first, *others in groups.values() if others]] = True
        lost = np.array([trial.key in snapshot.lost for trial in trials], dtype=bool)
        marks = {"on_front": on_front, "searched": searched, "repeated": repeated, "lost": lost}
        return cls(trials=table, precision=precision, **marks)

    def column(self, value: "Callable[[TrialResult], Any]") -> NDArray[Any]:
        """(n_trials,), the value of each."""
        return np.array(list(map(value, self.trials)))

    def objective(self, name: str) -> NDArray[np.float64]:
        """(n_trials,), in the unit of its axis; 0 where it is not known."""
        factor = OBJECTIVES[name].factor
        return self.column(lambda trial: (objective_value(trial, name) or 0.0) * factor)

    def reach(self, noise: Noise) -> NDArray[np.float64]:
        """(2, n_trials), how far 90 % of equal runs lie below and above each repeated one; NaN of others."""
        values = self.objective(noise.objective)
        ends = [beyond(values, noise, -noise.one_run), beyond(values, noise, noise.one_run)]
        return np.where(self.repeated, np.abs(ends - values), np.nan)

    def by_precision(self) -> "Iterator[tuple[Precision, NDArray[np.intp]]]":
        """Indices of each precision's trials in the order to draw them; a precision without any is left out.

        Hollow ones first and the front last, so that a seed replicate does not hide the trial that it repeats.
        """
        order = np.lexsort((self.searched, self.on_front))
        for precision in PRECISION_COLOURS:
            chosen = order[self.precision[order] == precision]
            if len(chosen):
                yield precision, chosen


def _is_searched(trial: "TrialResult", snapshot: "SweepSnapshot") -> bool:
    """A grid over both precisions has baselines among its points: they are as searched as any other."""
    return trial.is_of_search and point_of(trial.config, snapshot.settings.space) is not None


def beyond(values: NDArray[np.float64], noise: Noise, step: float) -> NDArray[np.float64]:
    """Values moved by a step on the scale of the noise, in the unit of their axis."""
    return values * np.exp(step) if noise.is_relative else values + step * OBJECTIVES[noise.objective].factor
