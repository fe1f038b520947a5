"""How long a sweep's tasks take and how many run at once, from its trials so far. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heapreplace
from operator import attrgetter
from statistics import fmean, median
from typing import TYPE_CHECKING

from trainables.values.config import FINAL_STATES, Precision

if TYPE_CHECKING:
    from orchestrator.ledger.rows import Entry
    from trainables.values.results import TrialResult
    from trainables.values.spans import Span

RECENT = 16
"""Trials that tell how long the next ones take: enough to even out, few enough to follow a search that moves on."""
STALLED = 2.0
"""Times the usual: what took longer was held up by other work on its machine, and counts as so much."""
COMPARISON_SHARE = 0.3
"""Of a whole trial's time, for comparing a 4-bit trial with its baseline, before a pair was compared."""
EVALUATIONS: Mapping[Precision, float] = {"16bit": 0.4, "nf4": 2.8}
"""How many times as long as a comparison a test evaluation takes: it reads twice the rows, and a 4-bit trial's reads
them by its baseline and the replicates, too. Both are from timelines of the demo and of a grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds of trials that ended, the last ones last.

    Attributes:
        searched: of those that the search took up, stopped early or not.
        whole: of those that came to their end, by precision, as another run of the same config would take.
        compared: of the comparisons of pairs.
        evaluated: when test evaluations were done.
        n_workers: tasks at once.
    """

    searched: tuple[float, ...] = ()
    whole: dict[Precision, list[float]] = field(default_factory=dict)
    compared: tuple[float, ...] = ()
    evaluated: "tuple[Span, ...]" = ()
    n_workers: int = 1

    @classmethod
    def of(cls, entries: "Sequence[Entry]", now: float, spans: "Sequence[Span]" = ()) -> "Pace | None":
        """None before a trial has ended.

        Args:
            spans: what the processes did.
        """
        timed = sorted((entry for entry in entries if _is_timed(entry.result)), key=_end)
        if not timed:
            return None
        first_end, first_of_key = _end(timed[0]), _first_starts(entries)
        cold, warm, whole = [], [], {}
        for entry in timed:
            trial = entry.result
            is_cold = trial.started_at < first_end  # as each worker loads the base before its first trial
            if trial.is_of_search:
                (cold if is_cold else warm).append(_repeated(entry) if is_cold else _seconds(entry))
            if trial.state == "completed":
                is_first = is_cold or trial.started_at == first_of_key[trial.config.cost_key]
                whole.setdefault(trial.config.precision, []).append(_repeated(entry) if is_first else _seconds(entry))
        running = [entry.result for entry in entries if entry.result.state == "running"]
        compared = tuple(span.seconds for span in spans if span.phase == "comparison")
        evaluated = tuple(span for span in spans if span.phase == "test evaluation")
        known = {"searched": tuple(warm or cold), "whole": whole, "compared": compared, "evaluated": evaluated}
        pace = cls(**known, n_workers=_at_once(timed, running))
        return pace.with_late([trial for trial in running if trial.started_at >= first_end], now)

    def with_late(self, running: "Sequence[TrialResult]", now: float) -> "Pace":
        """With trials at work that take longer than expected, so that a machine that slows down is noticed at once."""
        searched, whole = list(self.searched), {precision: list(found) for precision, found in self.whole.items()}
        for trial in running:
            seconds = now - trial.started_at
            if seconds > self.expected(trial):
                searched += [seconds] if trial.is_of_search else []
                whole.setdefault(trial.config.precision, []).append(seconds)
        return replace(self, searched=tuple(searched), whole=whole)

    def of_proposal(self) -> float:
        """Mean of what the search proposes."""
        whole = self.of_whole()
        return fmean(min(seconds, STALLED * whole) for seconds in self.searched[-RECENT:] or [whole])

    def expected(self, trial: "TrialResult") -> float:
        """Of a trial at work, from its start."""
        return self.of_proposal() if trial.origin == "search" else self.of_whole(trial.config.precision)

    def of_whole(self, precision: Precision | None = None) -> float:
        """Mean of a trial that is not stopped; over both precisions where none is given or none of it has ended."""
        found = self.whole.get(precision, []) if precision else []
        found = found or [seconds for same in self.whole.values() for seconds in same[-RECENT:]]
        return _usual(found or self.searched)

    def of_comparison(self) -> float:
        """Mean of the comparison of a pair."""
        return _usual(self.compared) if self.compared else COMPARISON_SHARE * self.of_whole()

    def of_evaluations(self) -> float:
        """Mean of the test evaluations that are done, one at least; the longest counts STALLED times the next at most.

        They are of two kinds, of which one takes several times as long.
        """
        *others, longest = sorted(span.seconds for span in self.evaluated)
        return fmean([*others, min(longest, STALLED * others[-1]) if others else longest])

    def of_evaluation(self, precision: Precision) -> float:
        """Of a finalist on the test rows, before one has told."""
        return EVALUATIONS[precision] * self.of_comparison()


def makespan(free: Iterable[float], jobs: Iterable[float]) -> float:
    """Seconds until all is done, where each job is taken by the worker that is free first.

    Args:
        free: seconds until each worker is; at least one.
        jobs: seconds of each, in their order.

    >>> makespan([0.0, 4.0], [3.0, 3.0, 3.0])
    7.0
    """
    workers = list(free)
    heapify(workers)
    for seconds in jobs:
        heapreplace(workers, workers[0] + seconds)
    return max(workers)


def _usual(seconds: Sequence[float]) -> float:
    """Mean of the last ones, of which none counts as more than STALLED times their median."""
    recent = seconds[-RECENT:]
    longest = STALLED * median(recent)
    return fmean(min(one, longest) for one in recent)


def _is_timed(trial: "TrialResult") -> bool:
    """Whether a trial ran here to an end: one that was reused took no time."""
    if trial.state == "completed" and not trial.train_seconds:
        return False
    return trial.state in FINAL_STATES and trial.started_at is not None and trial.ended_at is not None


_end: "Callable[[Entry], float]" = attrgetter("result.ended_at")


def _seconds(entry: "Entry") -> float:
    return max(0.0, entry.result.ended_at - entry.result.started_at)  # type: ignore[operator]


def _repeated(entry: "Entry") -> float:
    """Seconds of a trial as if nothing but its steps had taken time: not the base, nor its step's cost, nor graphs.

    From its first rung to its end, for all steps; what precedes the first step cannot be told apart from it. Of one
    that was measured once, by its steps' cost.
    """
    history, whole, cost = entry.result.history, _seconds(entry), entry.result.cost
    if len(entry.measured_at) < 2:
        return min(whole, history[-1].step * cost.seconds_per_step) if history and cost else whole
    first, last = history[0].step, history[-1].step
    return min(whole, (_end(entry) - entry.measured_at[0]) * last / (last - first))


def _first_starts(entries: "Sequence[Entry]") -> dict[str, float]:
    """When the first trial of each cost key began: it measures what its step costs, and captures its graphs."""
    found: dict[str, float] = {}
    for entry in entries:
        key, start = entry.result.config.cost_key, entry.result.started_at
        if start is not None:
            found[key] = min(start, found.get(key, start))
    return found


def _at_once(timed: "Sequence[Entry]", running: "Sequence[TrialResult]") -> int:
    """The most trials that were at work at one time lately, those at work now among them."""
    lately = [*(entry.result for entry in timed[-RECENT:]), *running]
    most = 1
    for one in lately:
        most = max(most, sum(t.started_at <= one.started_at < (t.ended_at or float("inf")) for t in lately))
    return most
