"""What the sampler and the stopping rule learn of a sweep's trials, and when: one class a way, behind one Protocol.

`in_order.py` is the default, by which no timing decides anything; here is the other one, see `--asynchronous`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from orchestrator.ledger.rows import Entry
    from orchestrator.pruning.rule import StoppingRule
    from orchestrator.search.proposer import Proposer
    from trainables.values.config import Origin, TrialConfig
    from trainables.values.results import Cost, Measurement, TrialResult

OnSeen = Callable[[Callable[[], list["TrialResult"]]], None]
"""Called whenever a result became known to the search, with what says all that are, see Feedback.seen."""


class Rows(Protocol):
    """A sweep's trials as its ledger has them now."""

    def __contains__(self, key: str) -> bool: ...

    @property
    def entries(self) -> "Iterable[Entry]":
        """By number."""

    def entry(self, key: str) -> "Entry | None": ...

    def is_open(self, key: str) -> bool:
        """Whether anything is still to come of a trial."""

    def other_half(self, config: "TrialConfig") -> str:
        """Key of a config at the other precision."""

    def key_of(self, params: Mapping[str, Any]) -> str:
        """Key of a point of the space."""

    def excess(self, config: "TrialConfig") -> float | None:
        """Predicted peak beyond the device's memory, as a share of it; None where not known."""


class Feedback(Protocol):
    """Stands between a sweep's rows, and the sampler and stopping rule that learn from them."""

    def take_up(self) -> None:
        """Learn what the ledger held when the driver began."""

    def settled(self, entry: "Entry") -> None:
        """All that will be known of a trial of the search is."""

    def needed(self, trial: "TrialResult") -> None:
        """A trial that the rule stopped is taken up again, as a baseline."""

    def is_ready(self) -> bool:
        """Whether the next point may be proposed now."""

    def seen(self) -> "list[TrialResult]":
        """Results that the next proposal is made from, in the order in which they became known."""

    def propose(self) -> dict[str, Any] | None:
        """A point whose trial is not known; None where none is left."""

    def number(self, key: str, origin: "Origin") -> int | None:
        """Of a trial that is about to be taken up; None is the next one."""

    def took(self, trial: "TrialResult") -> None:
        """A proposed point became a trial."""

    def why_stop(
        self, trial: "TrialResult", measurement: "Measurement", cost: "Cost", *, is_last: bool, may_stop: bool
    ) -> str | None:
        """A trial came to a rung, its last or one before: why it ends there; None where it goes on, or completed.

        Args:
            may_stop: False of a trial that others need, and at the last rung where nothing more would be spent.
        """

    def why_stop_import(self, trial: "TrialResult", measurement: "Measurement", cost: "Cost") -> str | None:
        """The same of a trial that another sweep ran to its end, at each of its rungs."""

    def end(self) -> None:
        """The search is over and all its trials are settled."""


class Asynchronous:
    """Each result is learned as it comes, so that which worker is quicker decides what is proposed and stopped."""

    def __init__(self, proposer: "Proposer", rule: "StoppingRule", rows: Rows, on_seen: OnSeen) -> None:
        self._proposer = proposer
        self._rule = rule
        self._rows = rows
        self._on_seen = on_seen

    def take_up(self) -> None:
        for entry in self._rows.entries:
            if entry.result.is_of_search:
                self._rule.learn(entry.result)

    def settled(self, entry: "Entry") -> None:
        self._proposer.tell(entry, self._rows.excess(entry.result.config))
        self._on_seen(self.seen)

    def needed(self, trial: "TrialResult") -> None:
        pass

    def is_ready(self) -> bool:
        return True

    def seen(self) -> "list[TrialResult]":
        return sorted(
            (entry.result for entry in self._rows.entries), key=lambda trial: (trial.ended_at or 0.0, trial.number)
        )

    def propose(self) -> dict[str, Any] | None:
        return self._proposer.propose(self._rows.key_of, self._rows.__contains__)

    def number(self, key: str, origin: "Origin") -> None:
        return None

    def took(self, trial: "TrialResult") -> None:
        pass

    def why_stop(
        self, trial: "TrialResult", measurement: "Measurement", cost: "Cost", *, is_last: bool, may_stop: bool
    ) -> str | None:
        ask = self._rule.at_end if is_last else self._rule.at_rung
        return ask(trial.key, measurement, cost, may_stop=may_stop)

    def why_stop_import(self, trial: "TrialResult", measurement: "Measurement", cost: "Cost") -> str | None:
        return None

    def end(self) -> None:
        pass
