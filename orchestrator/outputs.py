"""What a sweep leaves in its folder beside the ledger: front.json, trials.parquet, figures."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator import figures
from orchestrator.sweep import SweepResult
from trainables.config import Measurement, Similarity, TrialResult

RESULT_COLUMNS = ("key", "number", "state", "origin", "reason", "train_seconds", "started_at", "ended_at")


def trial_row(trial: TrialResult, on_front: bool) -> dict[str, Any]:
    """One trial as a flat row: what it was asked, its last measurement, its similarity."""
    row = {name: getattr(trial, name) for name in RESULT_COLUMNS}
    row |= trial.config.to_dict() | {"targets": "+".join(trial.config.targets), "alpha": float(trial.config.alpha)}
    last: Mapping[str, Any] = asdict(trial.history[-1]) if trial.history else {}
    row |= {name: last.get(name) for name in Measurement.__dataclass_fields__}
    close: Mapping[str, Any] = asdict(trial.similarity) if trial.similarity else {}
    row |= {name: close.get(name) for name in Similarity.__dataclass_fields__}
    return row | {"on_pareto_front": on_front, "device": trial.environment.get("device")}


def write(result: SweepResult, folder: Path) -> list[Path]:
    """Write everything; returns the files."""
    front = _replace(folder / "front.json", json.dumps(result.front.to_dict(), indent=2) + "\n")
    rows = [trial_row(trial, trial.key in result.front.keys) for trial in result.trials]
    table = folder / "trials.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table.with_suffix(".tmp"))
    os.replace(table.with_suffix(".tmp"), table)
    return [front, table, *figures.write(result, folder / "figures")]


def _replace(path: Path, text: str) -> Path:
    """Write a file whole or not at all."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
    return path
