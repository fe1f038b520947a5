"""A trial as one row of trials.parquet. Draws nothing, so that `verify` needs no figures to compare rows."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.verdict import Verdict, figures_of
from trainables.values.config import LATER_FIELDS, NAME_LISTS
from trainables.values.results import MemoryBreakdown, TrialResult

if TYPE_CHECKING:
    from orchestrator.analysis.snapshot import SweepSnapshot

COSTS = ("peak_memory_mib", "reserved_memory_mib", "seconds_per_step", "tokens_per_second")
"""Of a trial's cost key."""
MEASURED = ("step", "train_loss_nats", "eval_loss_nats")
"""Of its last rung."""
RESULT_COLUMNS = ("key", "number", "state", "origin", "reason", "train_seconds", "started_at", "ended_at")


def fields_of(value: object, names: Iterable[str], prefix: str = "") -> dict[str, Any]:
    """Columns of a value; all None where there is none."""
    return {f"{prefix}{name}": getattr(value, name) if value else None for name in names}


def trial_row(trial: TrialResult, on_front: bool, verdict: Verdict | None) -> dict[str, Any]:
    """One trial as a flat row: what it was asked, its last measurement, what its bytes are, its similarity."""
    row = fields_of(trial, RESULT_COLUMNS)
    row |= LATER_FIELDS | trial.config.to_dict()
    row |= {name: "+".join(getattr(trial.config, name)) for name in NAME_LISTS}
    last = trial.history[-1] if trial.history else None
    row |= fields_of(last, MEASURED)
    row |= fields_of(trial.cost if last else None, COSTS)
    row |= fields_of(trial.cost.breakdown if trial.cost else None, MemoryBreakdown.__dataclass_fields__, "memory_")
    row |= figures_of(trial)
    row |= {"verdict": verdict.answer if verdict else None, "verdict_sentence": verdict.sentence if verdict else None}
    row |= fields_of(verdict.lost if verdict else None, ("share", "low", "high"), "lost_")
    return row | {"on_pareto_front": on_front, "device": trial.environment.get("device")}


def trial_rows(snapshot: "SweepSnapshot") -> list[dict[str, Any]]:
    """Every trial of a sweep as a row; a column of figures may be there of some trials only."""
    front, verdicts = snapshot.front, snapshot.verdicts
    return [trial_row(trial, trial.key in front.keys, verdicts.get(trial.key)) for trial in snapshot.trials]
