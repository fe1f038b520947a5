"""Which config is the best within a budget of peak memory: the part of a report that answers it for every budget."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.analysis.choice import counting, stairs
from orchestrator.settings import SweepSettings
from trainables.values.config import TrialConfig
from trainables.values.results import TrialResult


@dataclass(frozen=True, slots=True, kw_only=True)
class WithinMemory:
    """A trial with the lowest validation loss of all that need no more peak memory, from its own peak on to the next's.

    Attributes:
        eval_loss_nats: on the validation rows, by which it was chosen.
    """

    number: int
    config: TrialConfig
    peak_memory_mib: float
    seconds_per_step: float
    eval_loss_nats: float


def within_memory(trials: Sequence[TrialResult], settings: SweepSettings) -> tuple[WithinMemory, ...]:
    """From the smallest budget up; empty where no trial counts for the front."""
    return tuple(
        WithinMemory(
            number=trial.number,
            config=trial.config,
            peak_memory_mib=trial.cost.peak_memory_mib,
            seconds_per_step=trial.cost.seconds_per_step,
            eval_loss_nats=trial.history[-1].eval_loss_nats,
        )
        for trial in stairs(counting(trials, settings))
    )
