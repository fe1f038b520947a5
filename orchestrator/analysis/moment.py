"""When a sweep is looked at, and what its ledger says of the time that it has taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.analysis.budgets import SPENT
from orchestrator.analysis.pace import Pace

if TYPE_CHECKING:
    from orchestrator.ledger.rows import Entry
    from trainables.values.spans import Span

BEGAN_AT, WRITING = "began_at", "writing"
"""Facts: when the process began that ran the sweep last, in seconds since the epoch; and what it writes after the last
task, as [phase, since when], None once all is written."""

Writing = Literal["writing figures", "writing MLflow"]
WRITING_SECONDS: Mapping[Writing, float] = {"writing figures": 6.0, "writing MLflow": 3.0}
"""In their order; about what sweeps take. The bar and the time left start from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Now, and what led to it.

    Attributes:
        now, began_at: seconds since the epoch; the latter of the process that runs the sweep, 0 where none does.
        spent_seconds: that the sweep has taken, without pauses, until its last task.
        pace: of its tasks; None before a trial has ended.
        writing: what is written, and since when; None before the last task has ended, and afterwards.
    """

    now: float
    began_at: float = 0.0
    spent_seconds: float = 0.0
    pace: Pace | None = None
    writing: tuple[Writing, float] | None = None

    @classmethod
    def of(
        cls, entries: "Sequence[Entry]", facts: Mapping[str, Any], now: float, spans: "Sequence[Span]" = ()
    ) -> "Moment":
        """From a ledger's rows and facts, and what the processes did."""
        writing = facts.get(WRITING)
        return cls(
            now=now,
            began_at=facts.get(BEGAN_AT, 0.0),
            spent_seconds=facts.get(SPENT, {}).get("wall_seconds", 0.0),
            pace=Pace.of(entries, now, spans),
            writing=(writing[0], writing[1]) if writing else None,
        )

    def share_done(self, seconds_left: float | None) -> float:
        """Of the time that the sweep takes in all; 0 where none is known.

        Args:
            seconds_left: until all is written.
        """
        spent = self.spent_seconds + (max(0.0, self.now - self.writing[1]) if self.writing else 0.0)
        return spent / (spent + seconds_left) if spent and seconds_left is not None else 0.0

    @property
    def writing_seconds_left(self) -> float:
        """For all that follows the last task."""
        phases = list(WRITING_SECONDS)
        if self.writing is None:
            return sum(WRITING_SECONDS.values())
        phase, since = self.writing
        ahead = sum(WRITING_SECONDS[later] for later in phases[phases.index(phase) + 1 :])
        return ahead + max(0.0, WRITING_SECONDS[phase] - max(0.0, self.now - since))
