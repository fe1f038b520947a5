"""MLflow's store: where it is, how it is opened, and a run in it that belongs to no sweep."""

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from orchestrator import tracking_schema

EXPERIMENT = "qlora-sweep"
UI_PORT = 5000
MODEL_TRAINING = "workflowType=machine_learning"
"""Of MLflow's two kinds of pages, those with runs, metrics and models."""


def store_uri(root: Path) -> str:
    """The SQLite store under `root`."""
    return f"sqlite:///{(root / 'mlflow.db').resolve()}"


def open_client(uri: str, root: Path) -> tuple[Any, str]:
    """An MlflowClient and the id of our experiment, created once, under a lock.

    Raises:
        StoreTooNew: the store under `root` is of a newer MLflow.
    """
    if uri == store_uri(root):
        tracking_schema.check(root / "mlflow.db")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its import sets it to INFO
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(EXPERIMENT)
        if found:
            return client, found.experiment_id
        local = uri.startswith("sqlite:")
        location = (root / "artifacts").resolve().as_uri() if local else None
        kind = {"mlflow.experimentKind": "custom_model_development"}  # opens as model training, not as GenAI
        return client, client.create_experiment(EXPERIMENT, artifact_location=location, tags=kind)


def experiment_page(store: Path) -> str:
    """Our experiment's runs on any MLflow server over a store, "" where it has none; MLflow is not asked.

    Reached by a link, an experiment opens as GenAI in a browser that comes first, whatever its tag says.
    """
    with closing(sqlite3.connect(f"{store.resolve().as_uri()}?mode=ro", uri=True)) as db:
        row = db.execute("SELECT experiment_id FROM experiments WHERE name = ?", (EXPERIMENT,)).fetchone()
    return f"#/experiments/{row[0]}/runs?{MODEL_TRAINING}" if row else ""


def page_of(experiment_id: str, run_id: str) -> str:
    """A run's page on any MLflow server; without the last part the browser that comes first opens it as GenAI."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{MODEL_TRAINING}"


def log_run(
    root: Path,
    say: Callable[[str], None],
    *,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    metrics: Sequence[tuple[str, float, int]],
    artifacts: Sequence[Path],
) -> str | None:
    """Write one finished run that belongs to no sweep.

    Args:
        metrics: name, value and step of each.
    Returns:
        Its page under `make ui`; None where MLflow could not be written (said through `say`).
    """
    try:
        from mlflow.entities import Metric, Param

        client, experiment_id = open_client(store_uri(root), root)
        run_id = client.create_run(experiment_id, tags=dict(tags), run_name=name).info.run_id
        client.log_batch(run_id, params=[Param(key, text_of(value)) for key, value in params.items()])
        now = int(time.time() * 1000)
        client.log_batch(run_id, metrics=[Metric(key, value, now, step) for key, value, step in metrics])
        for path in artifacts:
            client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, status="FINISHED")
    except Exception as error:
        say(f"MLflow was not written ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
        return None
    return f"http://127.0.0.1:{UI_PORT}/{page_of(experiment_id, run_id)}"


def text_of(value: Any) -> str:
    """A param as MLflow keeps it."""
    return "+".join(value) if isinstance(value, list) else str(value)
