"""Sweeps as they were at each moment of their run: recorded ones from their ledgers' times, and simulated ones."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from heapq import heappop, heappush

from orchestrator.analysis.budgets import ENDED
from orchestrator.analysis.moment import WRITING_SECONDS
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.ledger.rows import Entry
from orchestrator.ledger.task import Task
from tests.support.sweeps import Desk, Outcome
from trainables.values.config import rungs
from trainables.values.spans import Span

Seconds = Callable[[Task], float]
"""How long a task takes."""
EVALUATION = "test evaluation"
"""Phase of a worker."""


def recorded(sweep: SweepSnapshot, n: int) -> tuple[list[tuple[float, SweepSnapshot]], float]:
    """A sweep at n moments from its first trial's start to its last task's end, and when all was written.

    When test evaluations and writing ended is known by spans alone: without them no evaluation is there yet, and all is
    written as long after the last task as is expected.
    """
    begin = min(trial.started_at for trial in sweep.trials if trial.started_at)
    evaluated = [span.ended for span in sweep.spans if span.phase == EVALUATION]
    last = max([trial.ended_at for trial in sweep.trials if trial.ended_at] + evaluated)
    times = [begin + (last - begin) * i / n for i in range(1, n + 1)]
    end = sweep.facts["created_at"] + sweep.facts["spent"]["wall_seconds"] + sum(WRITING_SECONDS.values())
    end = max((span.ended for span in sweep.spans if span.phase in WRITING_SECONDS), default=end)
    return [(now, _at(sweep, now)) for now in times], end


def _at(sweep: SweepSnapshot, now: float) -> SweepSnapshot:
    """Its rows and spans as they were, evaluations by number as the driver hands them out, and no facts but one."""
    spans = tuple(span for span in sweep.spans if span.ended <= now)
    n_evaluated = sum(span.phase == EVALUATION for span in spans)
    evaluated = [trial.key for trial in sweep.trials if trial.test_evaluation][:n_evaluated]
    entries = tuple(_rows_at(sweep, now, evaluated))
    ended = {ENDED: sweep.facts[ENDED]} if any(not entry.result.is_of_search for entry in entries) else {}
    return replace(sweep, entries=entries, spans=spans, facts=ended)


def _rows_at(sweep: SweepSnapshot, now: float, evaluated: list[str]) -> Iterator[Entry]:
    ended = {trial.config for trial in sweep.trials if trial.ended_at and trial.ended_at <= now}
    for entry in sweep.entries:
        trial = entry.result
        if trial.started_at is None or trial.started_at > now:
            continue
        is_compared = trial.similarity and {trial.config, trial.config.at_other_precision} <= ended
        then = replace(trial, similarity=trial.similarity if is_compared else None)
        if trial.key not in evaluated:
            then = replace(then, test_evaluation=None)
        measured = tuple(at for at in entry.measured_at if at <= now)
        if trial.config not in ended:
            then = replace(then, state="running", ended_at=None, reason=None, history=trial.history[: len(measured)])
        yield replace(entry, result=then, measured_at=measured)


def simulated(
    desk: Desk, outcome: Outcome, seconds: Seconds, load_seconds: float
) -> list[tuple[float, tuple[Entry, ...], tuple[Span, ...]]]:
    """A sweep's rows and evaluations at each report, from its first to its last, on a clock that begins at 0.

    A trial's rungs come as its steps do. Each worker loads the base before its first task.
    """
    now, moments, due, spans = 0.0, [], [], ()
    started: dict[str, float] = {}
    measured: dict[str, list[float]] = {}
    while not desk.driver.finished:
        while name := desk.take(outcome):
            task = desk.all_asked[-1]
            whole, begin = seconds(task), now + (load_seconds if len(desk.all_asked) <= desk.n_slots else 0.0)
            ends = [begin + whole * step / task.config.max_steps for step in task.rungs or rungs(task.config.max_steps)]
            heappush(due, (ends[0], name, task, begin, ends))
            if task.kind == "train":
                started[task.key], measured[task.key] = now, []
        if not due:
            continue
        now, name, task, begin, (_, *later) = heappop(due)
        if task.kind == "train":
            measured[task.key].append(now)
        if not desk.step(name):
            heappush(due, (later[0], name, task, begin, later))
        elif task.kind == "evaluate":
            spans += (Span(process=name, phase=EVALUATION, began=begin, ended=now),)
        moments.append((now, tuple(_timed(entry, started, measured) for entry in desk.ledger.entries()), spans))
    return moments


def _timed(entry: Entry, started: dict[str, float], measured: dict[str, list[float]]) -> Entry:
    trial, times = entry.result, measured.get(entry.result.key, [])
    begun = replace(trial, started_at=trial.started_at and started[trial.key], ended_at=trial.ended_at and times[-1])
    return replace(entry, result=begun, measured_at=tuple(times))
