"""The two halves of a pair, a 4-bit trial and its 16-bit twin: when both are known, and what they are asked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.finalists import other_seeds
from orchestrator.ledger.rows import Entry
from trainables.results import TrialResult

if TYPE_CHECKING:
    from orchestrator.workers.tune_trainable import Task  # brings Ray Tune, which verify has no use for


def is_settled(trial: TrialResult, twin: TrialResult | None) -> bool:
    """Whether all that will be known of a trial is known.

    A completed 4-bit trial waits for its similarity, unless its twin ended without an adapter.
    """
    if trial.state in ("queued", "running"):
        return False
    if trial.state != "completed" or trial.config.precision == "16bit" or trial.similarity:
        return True
    return twin is not None and twin.state in ("refused", "oom", "diverged", "failed")


def twin_params(entry: Entry) -> dict[str, Any]:
    """The point of the space that a trial's twin stands for."""
    return {**entry.params, **({"precision": "16bit"} if "precision" in entry.params else {})}


def judgement_of(trial: TrialResult, twin: TrialResult | None, trials: Sequence[TrialResult], n_reseeds: int) -> "Task":
    """The judgement of a trial; of a 4-bit one beside its twin and the twin's config under other seeds."""
    from orchestrator.workers.tune_trainable import Task

    if trial.config.precision == "16bit" or twin is None or twin.state != "completed":
        return Task(kind="judge", key=trial.key, config=trial.config)
    others = other_seeds(trial, trials, n_reseeds)
    keys = tuple(other.key for other in others)
    return Task(kind="judge", key=trial.key, config=trial.config, twin_key=twin.key, reseed_keys=keys)
