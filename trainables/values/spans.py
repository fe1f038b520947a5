"""What a process did, and from when to when: a sweep's timeline is made of these. Standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of time that a process spent on one thing; one may lie inside another, as a load in a comparison.

    Attributes:
        process: "driver", or a worker by its number: "worker 0".
        phase: what it did; of workers see trainables.cost.timeline.
        began, ended: seconds since the epoch, by the clock of the process's own machine.
    """

    process: str
    phase: str
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began
