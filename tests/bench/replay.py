"""Trials of a recorded table under simulated time: how many GPU-seconds a search needs to find the table's front.

A `Method` is asked for jobs and told each rung, as Ray Tune would; workers are slots of an event queue. A job takes its
recorded seconds per step times its steps: loading, evaluation and comparisons take none, for any method.
"""

import heapq
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

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
    """

    values: Values | None
    own: Any


class Method(Protocol):
    """A search and its scheduler."""

    def ask(self, now: float) -> Job | None:
        """The next job; None while, or because, there is none."""

    def report(self, job: Job, row: Row | None, *, last: bool) -> bool:
        """A rung, or the end of a job without time; returns whether a trial goes on, or at its last rung completed."""


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
    events: list[tuple[float, int, Job, int]] = []
    order, now, n_trials, share = itertools.count(), 0.0, 0, 0.0
    found: list[tuple[float, ...]] = []
    missing = set(table.front)

    def push(job: Job, rung: int) -> None:
        rows = table.rungs[job.values] if job.values is not None else ()
        takes = seconds(rows[rung], rows[rung - 1] if rung else None) if rows else 0.0
        heapq.heappush(events, (now + takes, next(order), job, rung))

    while share < wanted_share and n_workers * now < max_seconds:
        while len(events) < n_workers and (job := method.ask(now)):
            n_trials += job.values is not None
            push(job, 0)
        if not events:
            break
        now, _, job, rung = heapq.heappop(events)
        if job.values is None:
            method.report(job, None, last=True)
            continue
        rows = table.rungs[job.values]
        last = rung == len(rows) - 1
        if not method.report(job, rows[rung], last=last):
            continue
        if not last:
            push(job, rung + 1)
        elif losses := table.losses(job.values):
            found.append(losses)
            missing.discard(job.values)
            share = hypervolume(found, table.reference) / table.volume
    return Outcome(
        gpu_seconds=n_workers * now if share >= wanted_share else None,
        n_trials=n_trials,
        n_completed=len(found),
        share=share,
        lost_share=len(missing) / len(table.front),
    )
