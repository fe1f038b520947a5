"""The rows of a sweep as a logged input of its MLflow run: source, digest, rows kept and dropped by reason."""

import json
import os
from collections.abc import Mapping
from itertools import starmap
from pathlib import Path
from typing import Any

from orchestrator.tracking.client import MlflowException, entities
from trainables import demo
from trainables.values.workload import Workload

CONTEXT = "mlflow.data.context"
"""Input tag by which MLflow's pages say what a data set was used for."""
DIGEST_CHARS = 16
"""As the report shows it; MLflow takes at most 36."""


def source_of(data: str) -> tuple[str, dict[str, str]]:
    """Where rows came from, in MLflow's words: kind of source and how to find it."""
    path = demo.ROWS_FILE if data == "demo" else Path(os.path.expanduser(data))
    if path.exists():
        return "local", {"uri": path.resolve().as_uri()}
    return "hugging_face", {"path": data}


def digest_of(workload: Workload) -> str:
    """Of the rows, as MLflow keeps it."""
    return workload.data_digest[:DIGEST_CHARS]


def tags_of(counts: Mapping[str, int]) -> dict[str, str]:
    """Of the input: what it is for, and rows read, dropped and kept."""
    return {CONTEXT: "training", **{f"rows {what}": str(n) for what, n in counts.items()}}


def log_data(client: Any, run_id: str, workload: Workload, counts: Mapping[str, int]) -> None:
    """Log the rows as the run's input, unless it has them already.

    Args:
        client: an MlflowClient.
        counts: rows read, dropped by reason, in each split, and longer than the space's limit.
    """
    digest = digest_of(workload)
    known = client.get_run(run_id).inputs.dataset_inputs
    if any(one.dataset.digest == digest for one in known):
        return
    kind, where = source_of(workload.data)
    profile = {"num_rows": counts.get("train"), "sha256": workload.data_digest, **counts}
    for name in ("data_split", "columns", "rows_found"):
        if said := getattr(workload, name):
            profile[name] = said
    dataset = entities.Dataset(
        name=Path(workload.data).name if kind == "local" else workload.data,
        digest=digest,
        source_type=kind,
        source=json.dumps(where),
        profile=json.dumps(profile),
    )
    tags = [*starmap(entities.InputTag, tags_of(counts).items())]
    try:
        client.log_inputs(run_id, [entities.DatasetInput(dataset, tags)])
    except MlflowException as error:  # another sweep wrote the same rows between MLflow's look and its writing
        if "unique" not in str(error).lower():
            raise
        client.log_inputs(run_id, [entities.DatasetInput(dataset, tags)])
