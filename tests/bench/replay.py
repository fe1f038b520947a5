"""Trials of a table, recorded or simulated, under simulated time: what a search finds in how many GPU-seconds.

A `Method` is asked for jobs and told each rung, as Ray Tune would; workers are slots of an event queue. A job takes its
recorded seconds per step times its steps: loading, evaluation and comparisons take none, for any method.
"""

import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow.parquet as pq

from orchestrator.analysis.pareto import hypervolume, pareto_mask
from orchestrator.objectives import DEFAULT
from search_spaces import Scalar, Space

REFERENCE_MARGIN = 0.1
"""The reference point lies so far beyond the front's worst values, as a share of the front's range."""

Values = tuple[Scalar, ...]
"""A point: the value of each of the space's parameters, in their order."""
Row = Mapping[str, Any]
"""What a rung of a trial measured; with a reason and without a loss where it diverged there."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One seed's trials: the rungs of every point, and what there is to find.

    Attributes:
        names: of the parameters.
        rungs: of each point, by step.
        front: the points that no other one dominates at full length.
        reference: a little beyond the worst of that front in each objective.
        volume: its hypervolume.
    """

    names: tuple[str, ...]
    rungs: Mapping[Values, tuple[Row, ...]]
    front: frozenset[Values]
    reference: tuple[float, ...]
    volume: float

    @property
    def max_steps(self) -> int:
        return max(rows[-1]["step"] for rows in self.rungs.values())

    @property
    def seconds(self) -> float:
        """Of all trials at full length."""
        return sum(seconds(row, before) for rows in self.rungs.values() for before, row in _pairs(rows))

    def losses(self, values: Values) -> tuple[float, ...] | None:
        """A point's objectives at full length; None where it diverges."""
        last = self.rungs[values][-1]
        return None if last["reason"] else tuple(float(last[objective]) for objective in DEFAULT)


def seconds(row: Row, before: Row | None) -> float:
    """Training time from one rung to the next."""
    return (row["step"] - (before["step"] if before else 0)) * row["seconds_per_step"]


def _pairs(rows: Sequence[Row]) -> Iterable[tuple[Row | None, Row]]:
    return zip((None, *rows), rows, strict=False)


def read(path: Path, space: Space) -> dict[int, Recorded]:
    """The seeds of a table that hold every point of the space.

    Raises:
        ValueError: no seed is whole.
    """
    names = tuple(space.parameters)
    found: dict[int, dict[Values, list[Row]]] = {}
    for row in pq.read_table(path).to_pylist():
        found.setdefault(row["seed"], {}).setdefault(tuple(row[name] for name in names), []).append(row)
    whole = {seed: rungs for seed, rungs in sorted(found.items()) if len(rungs) == space.n_points}
    if not whole:
        raise ValueError(f"{path} holds no seed with all {space.n_points} points")
    return {seed: recorded(names, rungs) for seed, rungs in whole.items()}


def recorded(names: Sequence[str], rungs: Mapping[Values, Sequence[Row]]) -> Recorded:
    """Add to the rungs of every point what there is to find among them."""
    sorted_rungs = {values: tuple(sorted(rows, key=lambda row: row["step"])) for values, rows in rungs.items()}
    plain = Recorded(tuple(names), sorted_rungs, frozenset(), (), 0.0)
    points = [values for values in sorted_rungs if plain.losses(values)]
    losses = np.array([plain.losses(values) for values in points])
    on_front = pareto_mask(losses)
    members = frozenset(values for values, is_member in zip(points, on_front, strict=True) if is_member)
    worst, spread = losses[on_front].max(axis=0), np.ptp(losses[on_front], axis=0)
    reference = worst + REFERENCE_MARGIN * np.where(spread > 0, spread, np.abs(worst))
    return replace(plain, front=members, reference=tuple(reference.tolist()), volume=hypervolume(losses, reference))


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker does: a trial of a point, or, without one, something that takes no time.

    Attributes:
        own: what its method wants to know it by.
        is_proposal: False of what comes on top of the trials asked for: a 16-bit baseline.
    """

    values: Values | None
    own: Any
    is_proposal: bool = True


class Method(Protocol):
    """A search and its scheduler."""

    def ask(self, now: float) -> Job | None:
        """The next job; None while, or because, there is none."""

    def report(self, job: Job, row: Row | None, *, last: bool) -> bool:
        """A rung, or the end of a job without time; returns whether a trial goes on, or at its last rung completed."""


@dataclass(frozen=True, slots=True)
class Event:
    """A trial was taken up, or ended.

    Attributes:
        now: simulated seconds since the begin.
    """

    kind: Literal["begun", "completed", "stopped"]
    now: float
    job: Job


def events(table: Recorded, method: Method, n_workers: int) -> Iterator[Event]:
    """What happens, in its order, until the method asks for nothing more."""
    queue: list[tuple[float, int, Job, int]] = []
    order, now = itertools.count(), 0.0

    def push(job: Job, rung: int) -> None:
        rows = table.rungs[job.values] if job.values is not None else ()
        takes = seconds(rows[rung], rows[rung - 1] if rung else None) if rows else 0.0
        heapq.heappush(queue, (now + takes, next(order), job, rung))

    while True:
        while len(queue) < n_workers and (job := method.ask(now)):
            if job.values is not None:
                yield Event("begun", now, job)
            push(job, 0)
        if not queue:
            return
        now, _, job, rung = heapq.heappop(queue)
        if job.values is None:
            method.report(job, None, last=True)
            continue
        last = rung == len(table.rungs[job.values]) - 1
        goes_on = method.report(job, table.rungs[job.values][rung], last=last)
        if goes_on and not last:
            push(job, rung + 1)
        else:
            is_found = goes_on and table.losses(job.values) is not None
            yield Event("completed" if is_found else "stopped", now, job)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a method came to.

    Attributes:
        gpu_seconds: until the wanted share of the hypervolume was there; None where it never was.
        n_trials: taken up until then.
        n_completed: of them.
        share: of the hypervolume at the end.
        lost_share: of the members of the table's front, those that had not completed at the end.
    """

    gpu_seconds: float | None
    n_trials: int
    n_completed: int
    share: float
    lost_share: float


def replay(table: Recorded, method: Method, *, wanted_share: float, n_workers: int, max_seconds: float) -> Outcome:
    """Run a method until its completed trials dominate the wanted share of the table's hypervolume.

    Args:
        max_seconds: GPU-seconds (workers x time) after which it is given up.
    """
    n_trials, share, reached = 0, 0.0, None
    found: list[tuple[float, ...]] = []
    missing = set(table.front)
    for event in events(table, method, n_workers):
        if n_workers * event.now > max_seconds:
            break
        n_trials += event.kind == "begun"
        losses = table.losses(event.job.values) if event.kind == "completed" else None
        if losses is not None:
            found.append(losses)
            missing.discard(event.job.values)
            share = hypervolume(found, table.reference) / table.volume
        if share >= wanted_share:
            reached = n_workers * event.now
            break
    return Outcome(
        gpu_seconds=reached,
        n_trials=n_trials,
        n_completed=len(found),
        share=share,
        lost_share=len(missing) / len(table.front),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a method has come to after so many trials.

    Attributes:
        gpu_seconds: spent by then, 16-bit baselines included.
        share: of the table's hypervolume that completed trials dominate.
        kept_share: of the hypervolume that the same trials would dominate, had none been stopped.
        lost_share: of the front that the same trials would have then, those that were stopped.
        n_completed: trials, baselines among them.
    """

    gpu_seconds: float
    share: float
    kept_share: float
    lost_share: float
    n_completed: int


def growth(table: Recorded, method: Method, sizes: Sequence[int], n_workers: int) -> dict[int, Found]:
    """What a method has come to after each of so many proposals, all of them ended where one worker does them.

    Args:
        sizes: numbers of proposals, from the least; a method that ends before counts as having come to it.
    """
    seen: dict[int, Found] = {}
    n_proposals, now = 0, 0.0
    begun: set[Values] = set()
    completed: set[Values] = set()
    for event in events(table, method, n_workers):
        now = event.now
        if event.kind == "begun" and event.job.is_proposal:
            if n_proposals in sizes:
                seen[n_proposals] = _found(table, begun, completed, n_workers * now)
            if n_proposals == sizes[-1]:
                break
            n_proposals += 1
        if event.kind == "begun":
            begun.add(event.job.values)
        elif event.kind == "completed":
            completed.add(event.job.values)
    for size in sizes:
        seen.setdefault(size, _found(table, begun, completed, n_workers * now))
    return seen


def _found(table: Recorded, begun: set[Values], completed: set[Values], gpu_seconds: float) -> Found:
    ends = {values: losses for values in begun if (losses := table.losses(values)) is not None}
    rows = np.array(list(ends.values())).reshape(-1, len(table.reference))
    is_completed = np.array([values in completed for values in ends], dtype=bool)
    volume, whole = hypervolume(rows[is_completed], table.reference), hypervolume(rows, table.reference)
    on_front = pareto_mask(rows)
    return Found(
        gpu_seconds=gpu_seconds,
        share=volume / table.volume,
        kept_share=volume / whole if whole else 1.0,
        lost_share=float((on_front & ~is_completed).sum() / max(1, on_front.sum())),
        n_completed=int(is_completed.sum()),
    )
