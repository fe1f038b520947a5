"""Stopping rules: which running trials end early. One class a rule, all behind one Protocol; `rule_of` picks one."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from orchestrator.pruning.hypervolume import HypervolumeStop

if TYPE_CHECKING:
    from search_spaces import EarlyTerminate
    from trainables.values.results import Cost, Measurement, TrialResult

logger = logging.getLogger(__name__)


class StoppingRule(Protocol):
    """Told of every trial's progress; says which one ends. It decides by what it was told alone.

    A reason is a sentence for the ledger, never empty.
    """

    def learn(self, trial: "TrialResult") -> None:
        """Take in a trial that the ledger holds from before a resume."""

    def at_rung(self, key: str, measurement: "Measurement", cost: "Cost", *, may_stop: bool) -> str | None:
        """A trial reported a rung before its last: why it ends there, None where it goes on.

        Args:
            may_stop: False of a trial that others need (a 16-bit baseline, a seed replicate): it always goes on.
        """

    def at_end(self, key: str, measurement: "Measurement", cost: "Cost", *, may_stop: bool) -> str | None:
        """A trial trained to its end: why it counts as stopped there all the same, None where it completed.

        Args:
            may_stop: whether more would have to be spent on it.
        """


class KeepAll:
    """No trial ends early."""

    def learn(self, trial: "TrialResult") -> None:
        pass

    def at_rung(self, key: str, measurement: "Measurement", cost: "Cost", *, may_stop: bool) -> str | None:
        return None

    def at_end(self, key: str, measurement: "Measurement", cost: "Cost", *, may_stop: bool) -> str | None:
        return None


def rule_of(asked: "EarlyTerminate", max_steps: int, objectives: Sequence[str]) -> StoppingRule:
    """The rule that a space asks for.

    Args:
        max_steps: of the longest trial.
        objectives: names of what the front is over.
    Raises:
        ValueError: a type without a rule.
    """
    match asked.type:
        case "hypervolume":
            return HypervolumeStop(asked, max_steps, objectives)
        case "asha":
            if len(objectives) > 1:
                logger.warning("early_terminate: asha knows one objective, held-out loss; hypervolume minds the front")
            from orchestrator.pruning.asha import Asha  # brings Ray Tune: seconds that no other rule needs

            return Asha(asked, max_steps)
        case "none":
            return KeepAll()
        case other:
            raise ValueError(f"no stopping rule {other!r}")
