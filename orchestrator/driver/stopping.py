"""What a running sweep has spent, its reference point, and why its search ended: kept in the ledger as facts."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median

from orchestrator.analysis.budgets import ENDED, SPENT, Ended, Spent, exceeded, flat, still_needed
from orchestrator.analysis.finalists import to_evaluate, wanted
from orchestrator.analysis.front import N_FOR_REFERENCE, REFERENCE, counted, fixed_reference
from orchestrator.ledger import Ledger
from orchestrator.settings import SweepSettings
from trainables.values.results import TrialResult

Clock = Callable[[], float]
"""Seconds since some moment, never going back."""


class Stopping:
    """Asked before every new trial; told when a task begins and ends."""

    def __init__(
        self, settings: SweepSettings, ledger: Ledger, n_slots: Callable[[], int], clock: Clock = time.monotonic
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._n_slots = n_slots
        self._clock = clock
        self._began = clock()
        self._before = Spent(**ledger.fact(SPENT, {}))
        self._tasks = Spent()
        self._live: dict[str, float | None] = {}  # when each task began, None before
        self._trial_seconds: list[float] = []
        self._reference: Sequence[float] | None = ledger.fact(REFERENCE)
        self.ended = Ended.from_fact(ledger.fact(ENDED))
        limits = (settings.max_gpu_hours, settings.max_hours, settings.max_usd)
        self._limited = any(limit is not None for limit in limits)

    def task_handed_out(self, trial_id: str) -> None:
        """It may wait for its worker, or for a node of a cluster that grows: this costs nothing yet."""
        self._live[trial_id] = None

    def task_began(self, trial_id: str) -> None:
        """A worker has taken it up."""
        self._live[trial_id] = self._clock()

    def task_ended(self, trial_id: str, *, completed: bool) -> None:
        """Keep what was spent.

        Args:
            completed: whether the task was a trial that completed.
        """
        began = self._live.pop(trial_id)
        seconds = 0.0 if began is None else self._clock() - began
        if completed:
            self._trial_seconds.append(seconds)
        self._tasks += Spent(device_seconds=self._share * seconds)
        self.keep_spent()

    def keep_spent(self) -> None:
        """Write it down: what an interrupt or a crash leaves unwritten, a budget would be spent on once more."""
        self._ledger.set_fact(SPENT, asdict(self.spent))

    @property
    def spent(self) -> Spent:
        """By now, running tasks included."""
        live = sum(self._clock() - began for began in self._live.values() if began is not None)
        return self._before + self._tasks + self._wall + Spent(device_seconds=self._share * live)

    @property
    def _wall(self) -> Spent:
        return Spent(wall_seconds=self._clock() - self._began)

    @property
    def _share(self) -> float:
        return self._settings.gpus_per_trial if self._settings.device == "cuda" else 1.0

    def fix_reference(self, seen: Callable[[], Sequence[TrialResult]], n_least: int = N_FOR_REFERENCE) -> None:
        """Keep the reference point, once, as soon as enough trials count of those that the search knows of."""
        if self._reference is None and len(counted(trials := seen(), self._settings)) >= n_least:
            self._reference = fixed_reference(trials, self._settings)
            self._ledger.set_fact(REFERENCE, self._reference)

    def why_full(self, trials: Sequence[TrialResult]) -> Ended | None:
        """Whether as many configs as were asked for were taken up."""
        n_taken = sum(trial.origin == "search" for trial in trials)
        if n_taken >= self._settings.n_trials:
            return Ended(why="trials", text=f"all {self._settings.n_trials} configs asked for were taken up")
        return None

    def why_end(self, trials: Sequence[TrialResult], seen: Callable[[], Sequence[TrialResult]]) -> Ended | None:
        """Why no new config may be taken up though fewer were than were asked for; None where one may.

        Args:
            seen: those that the search knows of, in the order in which they became known.
        """
        if ended := self._no_room(trials):
            return ended
        return flat(seen(), self._settings, self._reference) if self._settings.stop_when_flat else None

    def _no_room(self, trials: Sequence[TrialResult]) -> Ended | None:
        """Whether a budget has no room for another trial beside those at work and what finalists will need."""
        if not self._limited:
            return None
        known = {trial.config for trial in trials}
        n_runs = 1 + len(self._live) + sum(run.config not in known for run in wanted(trials, self._settings))
        n_evaluations = sum(trial.test_evaluation is None for trial in to_evaluate(trials, self._settings))
        needs = still_needed(
            self._settings,
            seconds_per_trial=self._seconds_per_trial(trials),
            n_runs=n_runs,
            n_evaluations=n_evaluations,
            n_slots=self._n_slots(),
        )
        return exceeded(self._settings, self.spent, needs)

    def _seconds_per_trial(self, trials: Sequence[TrialResult]) -> float:
        """Median over the trials that completed here; after a resume their training times stand in at first."""
        seconds = self._trial_seconds or [t.train_seconds for t in trials if t.train_seconds]
        return median(seconds) if seconds else 0.0

    def is_spent(self) -> bool:
        """Whether a budget is used up, so that no seed replicate is begun either."""
        return self._limited and exceeded(self._settings, self.spent, Spent()) is not None

    def end_search(self, ended: Ended) -> None:
        """Keep why the search is over, once; what follows are the seed replicates."""
        if self.ended is None:
            self.ended = ended
            self._ledger.set_fact(ENDED, ended.to_dict())
