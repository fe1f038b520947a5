"""Whether a running trial promises enough for the front: the rule behind early_terminate's "hypervolume".

The predictive termination of Domhan et al. 2015 (IJCAI, section 4) with a front in place of one best value: a trial
ends where even its most hopeful end would add at most `min_gain` to the hypervolume of what completed so far (with the
default, 0: where the front dominates that end). Members of the front are lost for good where a loss falls by more than
was to be hoped for; `make bench ARGS=search` says how many, and how much of the front's volume. What has a lower value
of an objective than all that went on from its rung so far is not stopped there. A 4-bit trial that trained to its end
and adds at most `min_gain` counts as stopped there: its 16-bit baseline would cost as much again, for as little.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.front import REFERENCE_MARGIN
from orchestrator.analysis.pareto import hypervolume, pareto_mask
from orchestrator.pruning.learning_curves import LearningCurves, is_cost, losses_at, measured
from trainables.values.config import rungs

if TYPE_CHECKING:
    from search_spaces import EarlyTerminate
    from trainables.values.results import Cost, Measurement, TrialResult


def first_rung(asked: "EarlyTerminate", max_steps: int) -> int:
    """Step from which trials may be stopped."""
    return next(rung for rung in rungs(max_steps) if rung >= asked.min_share * max_steps)


@dataclass(slots=True)
class DeviceFront:
    """What came to the rungs on one kind of device.

    Attributes:
        front: (n_members, n_objectives), of the trials that completed.
        dearest: (n_objectives,), the worst cost of all trials that came to a rung; -inf for what is no cost.
        least: at each rung, of every objective among the trials that were not stopped there.
    """

    front: NDArray[np.float64]
    dearest: NDArray[np.float64]
    least: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    def complete(self, losses: NDArray[np.float64]) -> None:
        """A trial completed."""
        rows = np.vstack([self.front, losses])
        self.front = np.unique(rows[pareto_mask(rows)], axis=0)

    def passed(self, step: int, losses: NDArray[np.float64]) -> None:
        """A trial goes on from a rung."""
        self.least[step] = np.minimum(self.least.get(step, losses), losses)

    def gain(self, losses: NDArray[np.float64]) -> float:
        """What a trial of these values would add to the front's hypervolume, as a share of it.

        The reference point is beyond the front's worst loss, and beyond every cost that was seen: a trial that costs
        more than the front's members can still be the one of the least loss.
        """
        worst = np.maximum(self.front.max(axis=0), self.dearest)
        spread = worst - self.front.min(axis=0)
        reference = worst + REFERENCE_MARGIN * np.where(spread > 0, spread, np.abs(worst))
        volume = hypervolume(self.front, reference)
        return hypervolume(np.vstack([self.front, losses]), reference) / volume - 1 if volume > 0 else float("inf")


class HypervolumeStop:
    """A StoppingRule, see orchestrator.pruning.rule."""

    def __init__(self, asked: "EarlyTerminate", max_steps: int, objectives: Sequence[str]) -> None:
        self._asked = asked
        self._first = first_rung(asked, max_steps)
        self._names = measured(objectives)
        self._is_cost = np.array(list(map(is_cost, self._names)))
        self._curves = LearningCurves(self._names)
        self._devices: dict[str, DeviceFront] = {}
        self._running: dict[str, list[Measurement]] = {}

    def learn(self, trial: "TrialResult") -> None:
        if not trial.cost:
            return
        n_passed = len(trial.history) - (trial.state == "pruned")
        for measurement in trial.history[:n_passed]:
            losses = losses_at(measurement, trial.cost, self._names)
            self._of(trial.cost).passed(measurement.step, losses)
            self._enter(trial.key, measurement, trial.cost)
        if trial.state == "completed":
            self.at_end(trial.key, trial.history[-1], trial.cost, may_stop=False)
        elif trial.state == "pruned":
            self._running.pop(trial.key, None)
            if trial.is_whole:
                self._curves.learn(trial.history, trial.cost)

    def at_rung(self, key: str, measurement: "Measurement", cost: "Cost", *, may_stop: bool) -> str | None:
        self._enter(key, measurement, cost)
        if not may_stop:
            return None
        losses, hopeful = losses_at(measurement, cost, self._names), self._curves.hopeful(self._running[key], cost)
        step, gain = measurement.step, None
        if hopeful is not None and step >= self._first:
            gain = self._too_little(step, losses, hopeful, self._of(cost))
        if gain is None:
            self._of(cost).passed(step, losses)
            return None
        del self._running[key]
        return f"hypervolume: at step {step} its most hopeful end ({self._shown(hopeful)}) {self._adds(gain)}"

    def at_end(self, key: str, measurement: "Measurement", cost: "Cost", *, may_stop: bool) -> str | None:
        self._enter(key, measurement, cost)
        self._curves.learn(self._running.pop(key), cost)
        losses, seen = losses_at(measurement, cost, self._names), self._of(cost)
        gain = self._too_little(measurement.step, losses, losses, seen) if may_stop else None
        if gain is None:
            seen.passed(measurement.step, losses)
            seen.complete(losses)
            return None
        return f"hypervolume: its end ({self._shown(losses)}) {self._adds(gain)} for a 16-bit baseline"

    def _enter(self, key: str, measurement: "Measurement", cost: "Cost") -> None:
        """A trial came to a rung, perhaps once more after it was lost."""
        before = [m for m in self._running.get(key, ()) if m.step < measurement.step]
        self._running[key] = [*before, measurement]
        seen, losses = self._of(cost), losses_at(measurement, cost, self._names)
        seen.dearest = np.where(self._is_cost, np.maximum(seen.dearest, losses), seen.dearest)

    def _too_little(
        self, step: int, losses: NDArray[np.float64], end: NDArray[np.float64], seen: DeviceFront
    ) -> float | None:
        """What a trial's end would add, as a share, where that is too little to go on for; else None."""
        least = seen.least.get(step)
        is_extreme = least is None or bool((losses < least).any())
        if is_extreme or not len(seen.front):
            return None
        gain = seen.gain(end)
        return gain if gain <= self._asked.min_gain else None

    def _shown(self, losses: NDArray[np.float64]) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in zip(self._names, losses, strict=True))

    def _adds(self, gain: float) -> str:
        return f"would add {gain:.2%} to what the front dominates, too little (min_gain {self._asked.min_gain:g})"

    def _of(self, cost: "Cost") -> DeviceFront:
        n = len(self._names)
        empty = DeviceFront(front=np.zeros((0, n)), dearest=np.full(n, -np.inf))
        return self._devices.setdefault(cost.device, empty)
