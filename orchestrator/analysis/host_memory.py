"""Memory of the host that worker processes took: whether one of them held a base twice shows here. Pure."""

from collections.abc import Mapping, Sequence

from trainables.values.results import TrialResult

PEAK_RESIDENT = "peak_resident_mib"
"""Fact of a trial's environment, which is of its worker's process: the most of the host's memory that it ever had."""


def largest_mib(trials: Sequence[TrialResult]) -> int | None:
    """Of the worker process with the most; None where none said it, as before the first trial has ended."""
    said = [trial.environment[PEAK_RESIDENT] for trial in trials if PEAK_RESIDENT in trial.environment]
    return max(map(int, said), default=None)


def without_peak(environment: Mapping[str, str]) -> dict[str, str]:
    """What trials on one device have in common."""
    return {name: value for name, value in environment.items() if name != PEAK_RESIDENT}
