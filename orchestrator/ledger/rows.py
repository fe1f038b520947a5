"""A ledger's rows as the values they stand for."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter

from trainables.values.config import TrialConfig
from trainables.values.findings import Comparison, TestEvaluation
from trainables.values.results import Cost, Evaluation, Measurement, TrialResult

COST: TypeAdapter[Cost] = TypeAdapter(Cost)
COMPARISON: TypeAdapter[Comparison] = TypeAdapter(Comparison)
TEST_EVALUATION: TypeAdapter[TestEvaluation] = TypeAdapter(TestEvaluation)
"""Values with values inside, read back from plain ones."""


@lru_cache(maxsize=4096)
def cost_of(text: str) -> Cost:
    """A cost key's value from its JSON: one for all trials of the cell, which a driver keeps by the thousand."""
    return COST.validate_json(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A trial's row: its result as others know it, and what only the driver needs.

    Attributes:
        result: the trial.
        params: the point of the search space that it stands for.
        adapter_sha256: of its adapter file, once completed.
        measured_at: seconds since the epoch of each measurement in `result.history`.
    """

    result: TrialResult
    params: Mapping[str, Any]
    adapter_sha256: str | None = None
    measured_at: tuple[float, ...] = field(default=())


def entry_of(row: sqlite3.Row, marks: list[sqlite3.Row], cost: Cost | None, faults: Mapping[str, str]) -> Entry:
    """One row of `trials`, with its rows of `measurements` by step, its cost key's value and the fact FAULTS."""
    measured = marks if cost else []
    result = TrialResult(
        key=row["key"],
        number=row["number"],
        config=TrialConfig.from_dict(json.loads(row["config"])),
        state=row["state"],
        origin=row["origin"],
        history=tuple(map(_measurement, measured)),
        similarity=COMPARISON.validate_json(row["similarity"]) if row["similarity"] else None,
        test_evaluation=TEST_EVALUATION.validate_json(row["test_evaluation"]) if row["test_evaluation"] else None,
        failed_evaluations=_failed_evaluations(row, faults),
        cost=cost,
        environment=json.loads(row["environment"]),
        reason=row["reason"],
        train_seconds=row["train_seconds"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
    )
    return Entry(
        result=result,
        params=json.loads(row["params"]),
        adapter_sha256=row["adapter_sha256"],
        measured_at=tuple(mark["at"] for mark in measured),
    )


def _failed_evaluations(row: sqlite3.Row, faults: Mapping[str, str]) -> dict[Evaluation, str]:
    failed: dict[Evaluation, str] = {}
    for what, column in (("compare", "similarity"), ("evaluate", "test_evaluation")):
        why = faults.get(f"{what} {row['key']}")
        if why and row[column] is None:
            failed[what] = why
    return failed


def _measurement(mark: sqlite3.Row) -> Measurement:
    return Measurement(
        step=mark["step"],
        train_loss_nats=mark["train_loss_nats"],
        eval_loss_nats=mark["eval_loss_nats"],
        train_curve=tuple((step, loss) for step, loss in json.loads(mark["train_curve"])),
    )
