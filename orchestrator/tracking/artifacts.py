"""Artifacts of a sweep's run in MLflow that are no files of its folder, from its ledger alone. Pure."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from orchestrator.analysis.host_memory import without_peak
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.report.content import report_of
from orchestrator.report.values import SweepReport
from trainables.values.config import canonical_json

SAMPLES, TABLES = "samples.json", "mlflow.loggedArtifacts"
"""An artifact table of the sweep's run, and the tag that names a run's tables."""
SAMPLE_COLUMNS = {
    "prompt": "prompt",
    "response": "the row's own response",
    "quantized": "4 bits",
    "baseline": "16-bit baseline",
    "untuned": "untuned base",
}
"""Of that table: field -> heading, after the trial's number."""


def _workload(snapshot: SweepSnapshot) -> dict[str, Any] | None:
    """The workload as it was recorded: fields that later versions added are not in an earlier sweep's artifact."""
    if snapshot.workload is None:
        return None
    recorded = snapshot.facts["workload"]
    return {name: value for name, value in asdict(snapshot.workload).items() if name in recorded}


def texts(snapshot: SweepSnapshot) -> dict[str, str]:
    """Artifacts of the sweep's run that are no files of its folder: name -> content."""
    asked = snapshot.settings.model_dump(mode="json", exclude={"address"})
    facts: dict[str, Any] = {"workload": _workload(snapshot)}
    facts["data_counts"] = snapshot.facts.get("data_counts")
    measured = [without_peak(trial.environment) for trial in snapshot.trials if trial.environment]
    facts["environments"] = sorted({*map(canonical_json, measured)})
    found = {"settings.json": json.dumps(asked, indent=2), "environment.json": json.dumps(facts, indent=2)}
    return found | _tables(report_of(snapshot))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An artifact that MLflow shows as a table, as its own log_table writes one; that would append to it next time."""
    return json.dumps({"columns": [*columns], "data": [[*row] for row in rows]}, indent=2)


def _tables(report: SweepReport) -> dict[str, str]:
    if not report.samples:
        return {}
    rows = [[report.best_4bit, *map(partial(getattr, sample), SAMPLE_COLUMNS)] for sample in report.samples]
    return {SAMPLES: table(["trial", *SAMPLE_COLUMNS.values()], rows)}
