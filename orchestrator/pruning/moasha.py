"""What came to each rung so far, and whether the latest to come goes on: the state behind halving."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from orchestrator.objectives import OBJECTIVES
from orchestrator.pruning.halving import goes_on, n_kept, stratum
from orchestrator.pruning.learning_curves import measured
from orchestrator.pruning.levels import Levels
from search_spaces import EarlyTerminate
from trainables.values.config import rungs
from trainables.values.results import Measurement, TrialResult


def first_rung(rule: EarlyTerminate, max_steps: int) -> int:
    """Step from which trials may be stopped."""
    return next(rung for rung in rungs(max_steps) if rung >= rule.min_share * max_steps)


class Arrivals:
    """Trials on one kind of device that came to one step, in that order.

    A row each in arrays that grow by doubling; of a trial that came again, only the last row is there.
    """

    def __init__(self, n_objectives: int) -> None:
        self._rows: dict[str, int] = {}
        self._n = 0
        self._losses = np.empty((64, n_objectives))
        self._strata = np.empty(64, dtype=np.int64)
        self._noise_seconds = np.empty(64)
        self._there, self._alive = np.zeros(64, dtype=bool), np.zeros(64, dtype=bool)
        self._levels: dict[int, Levels] = {}

    def add(self, key: str, losses: Sequence[float], band: int, noise_seconds: float) -> None:
        """Take in a trial, of a stratum, with p90 - p10 of its cost key's timed steps."""
        if self._n == len(self._strata):
            for name in ("_losses", "_strata", "_noise_seconds", "_there", "_alive"):
                before = getattr(self, name)
                setattr(self, name, np.concatenate([before, np.zeros_like(before)]))
        row = self._rows[key] = self._n
        self._losses[row], self._strata[row], self._noise_seconds[row] = losses, band, noise_seconds
        self._there[row] = self._alive[row] = True
        self._n += 1

    def forget(self, key: str) -> None:
        """Take a trial out, if it is there."""
        row = self._rows.pop(key, None)
        if row is not None:
            self._there[row] = False
            self._levels.pop(int(self._strata[row]), None)

    def stop(self, key: str) -> None:
        """Note that a trial was stopped here."""
        if key in self._rows:
            self._alive[self._rows[key]] = False

    @property
    def latest(self) -> list[float]:
        """Losses of the latest to come."""
        return self._losses[self._n - 1].tolist()

    def evaluate_on_test(self, eta: float, epsilon_of: Callable[[float], Sequence[float]]) -> tuple[bool, int]:
        """Whether the latest to come goes on, and how many its stratum has; it is alive still.

        Args:
            epsilon_of: of each objective, from the median noise of a step's time.
        """
        rows = np.flatnonzero(self._there[: self._n])
        losses, strata = self._losses[rows], self._strata[rows]
        epsilon = epsilon_of(float(np.median(self._noise_seconds[rows])))
        peers, band = losses[strata == strata[-1]], int(strata[-1])
        goes = goes_on(
            losses,
            strata,
            len(rows) - 1,
            eta=eta,
            epsilon=epsilon,
            alive=self._alive[rows],
            among_first=lambda n: self._known_levels(band, peers, epsilon).is_latest_among_first(n),
        )
        return goes, len(peers)

    def _known_levels(self, band: int, peers: NDArray[np.float64], epsilon: Sequence[float]) -> Levels:
        """Depths in a stratum: of those known from before and who came since, or anew where the noise changed them."""
        found = self._levels.get(band)
        if found is None or not found.takes(epsilon):
            found = self._levels[band] = Levels(peers, epsilon)
        for losses in peers[len(found) :]:
            found.add(losses)
        return found


@dataclass(slots=True)
class Rung:
    """All trials that came to one step, by kind of device, and the latest of them."""

    by_device: dict[str, Arrivals] = field(default_factory=dict)
    device: str = ""
    key: str = ""


class Moasha:
    """Multi-objective asynchronous successive halving (Schmucker et al. 2021, arXiv:2106.12639)."""

    def __init__(self, rule: EarlyTerminate, max_steps: int, objectives: Sequence[str]) -> None:
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
        rung = self._rungs.get(trial.history[-1].step) if trial.history else None
        if trial.state == "pruned" and rung:
            for arrivals in rung.by_device.values():
                arrivals.stop(trial.key)

    def enter(self, key: str, measurement: Measurement, noise_seconds: float, device: str = "") -> None:
        """A trial came to a rung; one that was stopped there before and is taken up again is the latest now.

        Args:
            noise_seconds: p90 - p10 of its timed steps.
            device: kind that it runs on; trials are compared within one kind only.
        """
        if measurement.step < self._first:
            return
        rung = self._rungs.setdefault(measurement.step, Rung())
        for arrivals in rung.by_device.values():
            arrivals.forget(key)
        rung.device, rung.key = device, key
        losses = [getattr(measurement, objective) for objective in self._objectives]
        band = stratum(measurement.peak_memory_mib, self._rule.stratum_share)
        rung.by_device.setdefault(device, Arrivals(len(losses))).add(key, losses, band, noise_seconds)

    def why_stop(self, step: int) -> str | None:
        """Why the latest trial to come to this step ends there, None where it goes on."""
        rung = self._rungs.get(step)
        if rung is None:
            return None
        arrivals = rung.by_device[rung.device]
        goes, n = arrivals.evaluate_on_test(self._rule.eta, self._epsilon)
        if goes:
            return None
        arrivals.stop(rung.key)
        shown = ", ".join(f"{o} {value:.4g}" for o, value in zip(self._objectives, arrivals.latest, strict=True))
        return (
            f"MOASHA: at step {step} not among the first {n_kept(n, self._rule.eta)} by non-dominated depth of the {n} "
            f"trials in its stratum of peak memory ({shown})"
        )

    def _epsilon(self, noise_seconds: float) -> list[float]:
        return [noise_seconds if OBJECTIVES[objective].is_timed else 0.0 for objective in self._objectives]
