"""Optuna's samplers by the names that a space may ask for."""

import warnings

import optuna
from optuna.exceptions import ExperimentalWarning

from orchestrator.search.design import N_FIRST

MODELS = frozenset({"tpe", "gp"})
"""Samplers that model what they were told, and begin with the points of `first_points`."""
POPULATION = 16
"""Trials of one generation of NSGA-II: a sweep has tens of trials, so that Optuna's 50 would be one generation."""


def sampler(method: str, seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler of that name; a grid has none, and is walked through in order."""
    samplers = optuna.samplers
    if method == "tpe":  # each setting on its own: jointly it finds less in a hundred trials, though it asks sooner
        return samplers.TPESampler(seed=seed, constant_liar=True, n_startup_trials=N_FIRST)
    if method == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
    if method == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=N_FIRST, warn_independent_sampling=False)
    if method == "qmc":
        quiet = {"warn_independent_sampling": False, "warn_asynchronous_seeding": False}
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            return samplers.QMCSampler(seed=seed, scramble=True, **quiet)
    return samplers.RandomSampler(seed=seed)
