"""Which run of its config a trial is, where that was trained under several seeds. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from orchestrator.analysis.finalists import N_SEEDS
from trainables.values.config import TrialConfig
from trainables.values.results import TrialResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A trial among the runs of its config.

    Attributes:
        nth: 1 of the run that came first, then by how far a seed is after that one's.
        n: runs of the config.
        first: number of the trial that came first.
    """

    nth: int
    n: int
    first: int


@lru_cache(maxsize=4096)
def _seedless(config: TrialConfig) -> TrialConfig:
    """One value for all seeds of a config."""
    return replace(config, seed=0)


def places(trials: Sequence[TrialResult]) -> dict[str, Place]:
    """Of every trial by key, whatever became of it.

    Args:
        trials: by number.
    """
    runs: dict[TrialConfig, list[TrialResult]] = {}
    for trial in trials:
        runs.setdefault(_seedless(trial.config), []).append(trial)
    found = {}
    for first, *others in runs.values():
        others.sort(key=lambda run: (run.config.seed - first.config.seed) % N_SEEDS)
        for nth, run in enumerate([first, *others], start=1):
            found[run.key] = Place(nth=nth, n=1 + len(others), first=first.number)
    return found
