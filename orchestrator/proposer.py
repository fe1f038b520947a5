"""What the search tries next: an in-memory Optuna study, a projection of the ledger.

Every candidate that is settled is told once: completed with all its objectives, anything else as pruned;
a trial that broke, or whose similarity is too low, violates a constraint (told as failed, TPE would go on
asking around it).
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from orchestrator.front import dissimilarity, losses_of
from orchestrator.ledger_rows import Entry
from orchestrator.settings import SweepSettings
from search_spaces import Parameter
from trainables.results import TrialResult

MAX_REPEATS = 50
"""Known points the sampler may propose in a row before an unknown one is drawn for it."""
BROKEN = 1.0
"""Constraint value of a trial that ended without usable figures."""
POPULATION = 16
"""Trials of one generation of NSGA-II: a sweep has tens of trials, so that Optuna's 50 would be one generation."""


def sampler(method: str, seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler of that name; a grid has none, and is walked through in order."""
    samplers = optuna.samplers
    if method == "tpe":
        return samplers.TPESampler(seed=seed, constant_liar=True)
    if method == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
    if method == "gp":
        return samplers.GPSampler(seed=seed, warn_independent_sampling=False)
    if method == "qmc":
        quiet = {"warn_independent_sampling": False, "warn_asynchronous_seeding": False}
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            return samplers.QMCSampler(seed=seed, scramble=True, **quiet)
    return samplers.RandomSampler(seed=seed)


def distribution(parameter: Parameter) -> BaseDistribution:
    """Optuna's form of a searched setting."""
    if parameter.choices is not None:
        return CategoricalDistribution(parameter.choices)
    if parameter.distribution == "int_uniform":
        return IntDistribution(int(parameter.min or 0), int(parameter.max or 0))
    return FloatDistribution(
        parameter.min or 0.0, parameter.max or 0.0, log=parameter.distribution == "log_uniform_values"
    )


def is_within(dist: BaseDistribution, value: Any) -> bool:
    """Whether a value could have been drawn from a distribution."""
    if isinstance(dist, CategoricalDistribution):
        return value in dist.choices
    return dist._contains(dist.to_internal_repr(value))


class Proposer:
    """Optuna behind two calls: `propose` a point that is not known, `tell` what became of a trial."""

    def __init__(self, settings: SweepSettings) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._settings = settings
        self._space = settings.space
        self._distributions = {name: distribution(p) for name, p in settings.space.parameters.items()}
        self.study = optuna.create_study(
            directions=["minimize"] * len(settings.objectives), sampler=sampler(self._space.method, settings.seed)
        )
        self._asked: dict[str, optuna.Trial] = {}

    def propose(
        self, key_of: Callable[[Mapping[str, Any]], str], known: Callable[[str], bool]
    ) -> dict[str, Any] | None:
        """A point of the space whose trial is not known yet, or None when there is none left."""
        if self._space.method == "grid":
            return next((point for point in self._space.grid() if not known(key_of(point))), None)
        for _ in range(MAX_REPEATS):
            trial = self.study.ask(self._distributions)
            if not known(key_of(trial.params)):
                self._asked[key_of(trial.params)] = trial
                return trial.params
            self.study.tell(trial, state=TrialState.FAIL)
        if self._space.n_points is None:
            return None
        return next((point for point in self._space.grid() if not known(key_of(point))), None)

    def tell(self, entry: Entry, excess: float | None = None) -> None:
        """Tell the study about a settled trial, whether it asked for it or not (a twin, a resumed sweep).

        Args:
            excess: predicted peak beyond the device's memory, as a share of it; None where not known.
        """
        trial = self._asked.pop(entry.result.key, None)
        if trial is None:
            if not self._is_within(entry) or self._settings.config(dict(entry.params)) != entry.result.config:
                return  # a twin at a precision that is not searched
            trial = self._asked_for(entry)
        self._end(trial, entry, excess)

    def learn(self, entry: Entry, excess: float | None = None) -> None:
        """Tell the study about a trial of another sweep over the same space, under whatever seed."""
        if self._is_within(entry):
            self._end(self._asked_for(entry), entry, excess)

    def _is_within(self, entry: Entry) -> bool:
        names = self._distributions.items()
        return all(name in entry.params and is_within(dist, entry.params[name]) for name, dist in names)

    def _asked_for(self, entry: Entry) -> optuna.Trial:
        self.study.enqueue_trial(dict(entry.params))
        return self.study.ask(self._distributions)

    def _end(self, trial: optuna.Trial, entry: Entry, excess: float | None) -> None:
        result = entry.result
        trial.set_user_attr("key", result.key)
        trial.set_constraint("memory", _memory_violation(result, excess))
        losses = losses_of(result, self._settings.objectives)
        gap = dissimilarity(result, self._settings.min_similarity)
        if result.state == "completed" and losses is not None and gap is not None:
            trial.set_constraint("similarity", gap)
            self.study.tell(trial, losses)
        else:
            trial.set_constraint("similarity", 0.0 if result.state == "pruned" else BROKEN)
            self.study.tell(trial, state=TrialState.PRUNED)


def _memory_violation(result: TrialResult, excess: float | None) -> float:
    """At most 0 where a trial fitted the device; of one that did not, the more the further its prediction is off."""
    if result.state not in ("refused", "oom"):
        return 0.0
    return max(excess or 0.0, BROKEN if result.state == "oom" else 1e-6)
