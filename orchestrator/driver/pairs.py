"""The two halves of a pair, a 4-bit trial and its 16-bit baseline: what they are asked."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.analysis.finalists import other_seeds
from orchestrator.ledger.rows import Entry
from orchestrator.ledger.task import Task
from trainables.values.results import TrialResult


def baseline_params(entry: Entry) -> dict[str, Any]:
    """The point of the space that a trial's baseline stands for."""
    return {**entry.params, **({"precision": "16bit"} if "precision" in entry.params else {})}


def is_ready(trial: TrialResult, to_come: Iterable[TrialResult]) -> bool:
    """Whether all that an evaluation takes has ended: of a 4-bit trial its baseline's runs under any seed, too.

    A 4-bit run under another seed brings one of those when it completes, so that it is waited for as well.

    Args:
        to_come: trials of which not all is known yet.
    """
    exact = trial.config.at("16bit")
    for run in to_come:
        is_alike = replace(run.config.at("16bit"), seed=exact.seed) == exact
        if run.key == trial.key or (trial.config.precision == "nf4" and is_alike):
            return False
    return True


def evaluation_task(
    trial: TrialResult, baseline: TrialResult | None, trials: Sequence[TrialResult], n_baseline_seeds: int
) -> Task:
    """The test evaluation of a trial, of a 4-bit one beside its baseline and that one's config under other seeds."""
    if trial.config.precision == "16bit" or baseline is None or baseline.state != "completed":
        return Task(kind="evaluate", key=trial.key, config=trial.config)
    others = other_seeds(trial, trials, n_baseline_seeds)
    keys = tuple(other.key for other in others)
    return Task(kind="evaluate", key=trial.key, config=trial.config, baseline_key=baseline.key, replicate_keys=keys)
