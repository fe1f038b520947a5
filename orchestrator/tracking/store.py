"""MLflow's store: where it is, and what it says without MLflow, whose import takes seconds."""

import sqlite3
from contextlib import closing
from pathlib import Path

EXPERIMENT = "qlora-sweep"
UI_PORT = 5000
MODEL_TRAINING = "workflowType=machine_learning"
"""Of MLflow's two kinds of pages, those with runs, metrics and models."""
CLIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""MLflow's client waits for 120 s and tries 7 times unless told otherwise, and reports its use to its makers."""
LOOK_SECONDS = 2.0


def store_uri(root: Path) -> str:
    """The SQLite store under `root`."""
    return f"sqlite:///{store_file(root).resolve()}"


def store_file(root: Path) -> Path:
    return root / "mlflow.db"


def experiment_page(store: Path) -> str:
    """Our experiment's runs on any MLflow server over a store, "" where it has none; MLflow is not asked.

    Reached by a link, an experiment opens as GenAI in a browser that comes first, whatever its tag says.
    """
    with closing(sqlite3.connect(f"{store.resolve().as_uri()}?mode=ro", uri=True)) as db:
        row = db.execute("SELECT experiment_id FROM experiments WHERE name = ?", (EXPERIMENT,)).fetchone()
    return f"#/experiments/{row[0]}/runs?{MODEL_TRAINING}" if row else ""


def has_whole_run(store: Path, sweep_id: str) -> bool:
    """Whether a store holds a run of a sweep that was written to its end; MLflow, which takes seconds, is not asked."""
    asked = (
        "SELECT 1 FROM runs JOIN tags USING (run_uuid) WHERE tags.key = 'sweep_id' AND tags.value = ? "
        "AND runs.status = 'FINISHED' AND runs.lifecycle_stage = 'active'"
    )
    try:
        with closing(sqlite3.connect(f"{store.resolve().as_uri()}?mode=ro", uri=True, timeout=LOOK_SECONDS)) as db:
            return db.execute(asked, (sweep_id,)).fetchone() is not None
    except sqlite3.Error:
        return False


def page_of(experiment_id: str, run_id: str) -> str:
    """A run's page on any MLflow server; without the last part the browser that comes first opens it as GenAI."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{MODEL_TRAINING}"
