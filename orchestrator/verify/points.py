"""The points of runs' metrics in MLflow, and what is wrong with them beside those of the ledger."""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import isnan
from sys import float_info
from typing import Any

from sqlalchemy.engine import make_url

from orchestrator.tracking.contents import Point

SYSTEM = "system/"
"""Begins the names of what MLflow itself records of the machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What is wrong with the points of one run.

    Attributes:
        text: one metric's fault, and how many more have one.
        only_gone: writing the points once more mends it; what is there MLflow neither changes nor deletes.
    """

    text: str
    only_gone: bool


def stored(value: float) -> float | None:
    """As SQL stores keep it: no infinity, and here None for NaN, which equals nothing."""
    return None if isnan(value) else max(-float_info.max, min(float_info.max, value))


def as_stored(points: Iterable[Point]) -> set[Any]:
    """Points as SQL stores keep them."""
    return {(name, stored(value), at, step) for name, value, at, step in points}


def stored_points(metrics: Iterable[Any]) -> set[Any]:
    """MLflow's metrics as points."""
    return {(m.key, stored(m.value), m.timestamp, m.step) for m in metrics}


def histories(client: Any, uri: str, expected: Sequence[tuple[Any, Sequence[Point]]]) -> dict[str, set[Any]]:
    """All points of runs by run id.

    Of a SQLite store they are read from its file. Elsewhere a metric with one expected point is taken as the run told
    it, and the others are asked for one by one.

    Args:
        expected: runs, each with its points.
    """
    found = {}
    if not uri.startswith("sqlite:"):
        for run, points in expected:
            found[run.info.run_id] = _asked(client, run, points)
        return found
    query = "SELECT key, CASE WHEN is_nan THEN NULL ELSE value END, timestamp, step FROM metrics WHERE run_uuid = ?"
    with closing(sqlite3.connect(str(make_url(uri).database), timeout=30)) as db:
        for run, _ in expected:
            found[run.info.run_id] = set(db.execute(query, (run.info.run_id,)))
    return found


def _asked(client: Any, run: Any, points: Sequence[Point]) -> set[Any]:
    moments: dict[str, list[tuple[int, int]]] = {}
    for name, _, at, step in points:
        moments.setdefault(name, []).append((at, step))
    found = set()
    for name, value in run.data.metrics.items():
        if len(moments.get(name, ())) == 1:
            found.add((name, stored(value), *moments[name][0]))
        elif not name.startswith(SYSTEM):
            found |= stored_points(client.get_metric_history(run.info.run_id, name))
    return found


def faults(
    found: set[Any], last: Mapping[str, float], expected: Sequence[Point], others: Sequence[Point] = ()
) -> Faults | None:
    """What is wrong, None where nothing is.

    A point of the same metric and step, but of an earlier time than the ledger's, is what a trial had reported before
    it was taken up again.

    Args:
        found: points as `histories` gives them.
        last: value of each metric as the run shows it.
        others: may be there too.
    """
    due, whole, latest = {}, set(), {}
    for name, value, at, step in sorted(expected, key=_place):
        latest[name] = stored(value)
        due[name, step] = latest[name], at
        whole.add((name, latest[name], at, step))
    for name, value, at, step in others:
        due[name, step] = stored(value), at
    texts, only_gone = {}, True
    for name, value, _, step in sorted(whole - found, key=_place):
        texts.setdefault(name, f"{name} at step {step} is gone, the ledger has {value}")
    gone = set(texts)
    for name, value, at, step in sorted(found - whole - as_stored(others), key=_place, reverse=True):
        ours, since = due.get((name, step), (None, -1))
        if at >= since and not name.startswith(SYSTEM):
            texts[name] = f"{name} at step {step} is {value}, the ledger has {ours}"
            only_gone = False
    for name, value in latest.items():
        shown = stored(last[name]) if name in last else None
        if name in last and shown == value:
            continue
        texts[name] = f"{name} is {shown}, the ledger has {value}"
        only_gone &= name not in last and name in gone
    if not texts:
        return None
    more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
    return Faults(text=texts[min(texts)] + more, only_gone=only_gone)


def _place(point: Any) -> tuple[str, int, int]:
    """A point's metric, step and time; its value may be None."""
    name, _, at, step = point
    return name, step, at
