"""Sweeps as they were at each moment of their run: recorded ones from their ledgers' times, and simulated ones."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from heapq import heappop, heappush

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.ledger.rows import Entry
from orchestrator.ledger.task import Task
from tests.support.sweeps import Desk, Outcome
from trainables.values.config import rungs

Seconds = Callable[[Task], float]
"""How long a task takes."""


def recorded(sweep: SweepSnapshot, n: int) -> tuple[list[tuple[float, tuple[Entry, ...]]], float]:
    """A sweep's rows at n moments from its first trial's start to its last trial's end, and when its last task ended.

    When a test evaluation ended is not written, so none is there yet.
    """
    starts = [trial.started_at for trial in sweep.trials if trial.started_at]
    last = max(trial.ended_at for trial in sweep.trials if trial.ended_at)
    times = [min(starts) + (last - min(starts)) * i / n for i in range(1, n + 1)]
    end = sweep.facts["created_at"] + sweep.facts["spent"]["wall_seconds"]
    return [(now, tuple(_at(sweep, now))) for now in times], end


def _at(sweep: SweepSnapshot, now: float) -> Iterator[Entry]:
    ended = {trial.config for trial in sweep.trials if trial.ended_at and trial.ended_at <= now}
    for entry in sweep.entries:
        trial = entry.result
        if trial.started_at is None or trial.started_at > now:
            continue
        is_compared = trial.similarity and {trial.config, trial.config.at_other_precision} <= ended
        then = replace(trial, test_evaluation=None, similarity=trial.similarity if is_compared else None)
        measured = tuple(at for at in entry.measured_at if at <= now)
        if trial.config not in ended:
            then = replace(then, state="running", ended_at=None, reason=None, history=trial.history[: len(measured)])
        yield replace(entry, result=then, measured_at=measured)


def simulated(
    desk: Desk, outcome: Outcome, seconds: Seconds, load_seconds: float
) -> list[tuple[float, tuple[Entry, ...]]]:
    """A sweep's rows at each report, from its first to its last, on a clock that begins at 0.

    A trial's rungs come as its steps do. Each worker loads the base before its first task.
    """
    now, moments, due = 0.0, [], []
    started: dict[str, float] = {}
    measured: dict[str, list[float]] = {}
    while not desk.driver.finished:
        while name := desk.take(outcome):
            task = desk.all_asked[-1]
            whole, begin = seconds(task), now + (load_seconds if len(desk.all_asked) <= desk.n_slots else 0.0)
            ends = [begin + whole * step / task.config.max_steps for step in rungs(task.config.max_steps)]
            heappush(due, (ends[0], name, task, ends))
            if task.kind == "train":
                started[task.key], measured[task.key] = now, []
        if not due:
            continue
        now, name, task, (_, *later) = heappop(due)
        if task.kind == "train":
            measured[task.key].append(now)
        if not desk.step(name):
            heappush(due, (later[0], name, task, later))
        moments.append((now, tuple(_timed(entry, started, measured) for entry in desk.ledger.entries())))
    return moments


def _timed(entry: Entry, started: dict[str, float], measured: dict[str, list[float]]) -> Entry:
    trial, times = entry.result, measured.get(entry.result.key, [])
    begun = replace(trial, started_at=trial.started_at and started[trial.key], ended_at=trial.ended_at and times[-1])
    return replace(entry, result=begun, measured_at=tuple(times))
