"""What came to each rung so far, and whether the latest to come goes on: the state behind halving."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from orchestrator.pruning.halving import goes_on, n_kept, stratum
from orchestrator.pruning.learning_curves import measured
from orchestrator.settings import Objective
from search_spaces import EarlyTerminate
from trainables.config import rungs
from trainables.results import Measurement, TrialResult


def first_rung(rule: EarlyTerminate, max_steps: int) -> int:
    """Step from which trials may be stopped."""
    return next(rung for rung in rungs(max_steps) if rung >= rule.min_share * max_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a trial showed at a rung.

    Attributes:
        losses: of the objectives that a rung measures, minimised.
        stratum: of its peak memory.
        noise_seconds: p90 - p10 of its cost cell's timed steps.
        device: kind of device that it runs on.
    """

    losses: tuple[float, ...]
    stratum: int
    noise_seconds: float
    device: str


@dataclass(slots=True)
class Rung:
    """All trials that came to one step, in that order, and the keys of those stopped there."""

    marks: dict[str, Mark] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)


class Moasha:
    """Multi-objective asynchronous successive halving (Schmucker et al. 2021, arXiv:2106.12639)."""

    def __init__(self, rule: EarlyTerminate, max_steps: int, objectives: Sequence[Objective]) -> None:
        self._rule = rule
        self._first = first_rung(rule, max_steps)
        self._objectives = measured(objectives)
        self._rungs: dict[int, Rung] = {}

    def learn(self, trial: TrialResult) -> None:
        """Take in a trial of the ledger."""
        for measurement in trial.history:
            if trial.cost:
                noise = trial.cost.seconds_per_step_p90 - trial.cost.seconds_per_step_p10
                self.enter(trial.key, measurement, noise, trial.cost.device)
        if trial.state == "pruned" and trial.history and trial.history[-1].step in self._rungs:
            self._rungs[trial.history[-1].step].stopped.add(trial.key)

    def enter(self, key: str, measurement: Measurement, noise_seconds: float, device: str = "") -> None:
        """A trial came to a rung; one that was stopped there before and is taken up again is the latest now.

        Args:
            noise_seconds: p90 - p10 of its timed steps.
            device: kind that it runs on; trials are compared within one kind only.
        """
        if measurement.step < self._first:
            return
        rung = self._rungs.setdefault(measurement.step, Rung())
        rung.stopped.discard(key)
        rung.marks.pop(key, None)
        rung.marks[key] = Mark(
            losses=tuple(getattr(measurement, objective) for objective in self._objectives),
            stratum=stratum(measurement.peak_memory_mib, self._rule.stratum_share),
            noise_seconds=noise_seconds,
            device=device,
        )

    def why_stop(self, step: int) -> str | None:
        """Why the latest trial to come to this step ends there, None where it goes on."""
        rung = self._rungs.get(step)
        if rung is None:
            return None
        device = rung.marks[next(reversed(rung.marks))].device
        keys = [key for key, mark in rung.marks.items() if mark.device == device]
        marks = [rung.marks[key] for key in keys]
        losses = np.array([mark.losses for mark in marks])
        strata = np.array([mark.stratum for mark in marks])
        noise = float(np.median([mark.noise_seconds for mark in marks]))
        epsilon = [noise if objective == "seconds_per_step" else 0.0 for objective in self._objectives]
        alive = np.array([key not in rung.stopped for key in keys])
        latest = len(keys) - 1
        if goes_on(losses, strata, latest, eta=self._rule.eta, epsilon=epsilon, alive=alive):
            return None
        rung.stopped.add(keys[latest])
        n = int((strata == strata[latest]).sum())
        shown = ", ".join(f"{o} {value:.4g}" for o, value in zip(self._objectives, losses[latest], strict=True))
        return (
            f"MOASHA: at step {step} not among the first {n_kept(n, self._rule.eta)} by non-dominated depth of the {n} "
            f"trials in its stratum of peak memory ({shown})"
        )
