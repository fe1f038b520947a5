"""MLflow's store: where it is, how it is opened, and a run in it that belongs to no sweep."""

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.analysis.describe import text_of
from orchestrator.security.redaction import reason_of
from orchestrator.settings.command import command
from trainables.values.errors import ConfigError

logger = logging.getLogger(__name__)

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


def open_client(uri: str, root: Path) -> tuple[Any, str]:
    """An MlflowClient and the id of our experiment, both created once, under a lock.

    Raises:
        ConfigError: the store is of another MLflow's schema.
        Exception: whatever MLflow raises where a store cannot be read or a server does not answer.
    """
    for name, value in CLIENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    # its import sets it to INFO; what it warns of is raised too, and then said in one line without addresses
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if uri == store_uri(root) and not store_file(root).exists():
            _create_store(root)
        try:
            client = MlflowClient(tracking_uri=uri)
            return client, _experiment(client, root if uri.startswith("sqlite:") else None)
        except Exception:
            if uri == store_uri(root):
                check_schema(store_file(root))
            raise


def check_server(uri: str) -> None:
    """Whether the MLflow server at an http address is one that this client can speak to; one that is away may come.

    Raises:
        ConfigError: it is of another major version.
    """
    if not uri.startswith(("http://", "https://")):
        return
    import requests

    try:
        answer = requests.get(uri.rstrip("/") + "/version", timeout=LOOK_SECONDS)
    except requests.RequestException:
        return
    ours, theirs = version("mlflow"), answer.text.strip()
    if answer.ok and theirs[:1].isdigit() and theirs.partition(".")[0] != ours.partition(".")[0]:
        where = urlsplit(uri)
        raise ConfigError(
            f"tracking_uri: the MLflow server at {where.hostname}:{where.port or ''} is version {theirs[:20]}, here is "
            f"{ours}; give a server of the same major version, or leave it out and run `{command()} sync` later"
        )


def _create_store(root: Path) -> None:
    """Make the SQLite store under another name and rename it: a program killed meanwhile leaves none that is half made.

    MLflow migrates a new store through all its versions, and can neither go on nor begin again where that was cut off.
    """
    from mlflow import MlflowClient

    scratch = root / ".mlflow.db.new"
    for left in root.glob(f"{scratch.name}*"):
        left.unlink()
    _experiment(MlflowClient(tracking_uri=f"sqlite:///{scratch.resolve()}"), root)
    scratch.rename(store_file(root))


def _experiment(client: Any, root: Path | None) -> str:
    """Id of our experiment, which is created where there is none; its artifacts lie under `root`, if that is given."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found:
        return found.experiment_id
    location = (root / "artifacts").resolve().as_uri() if root else None
    kind = {"mlflow.experimentKind": "custom_model_development"}  # opens as model training, not as GenAI
    try:
        return client.create_experiment(EXPERIMENT, artifact_location=location, tags=kind)
    except Exception:  # on a server another machine's sweep may have been first; the lock is this machine's
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            raise
        return found.experiment_id


def check_schema(path: Path) -> None:
    """Refuse a store that another MLflow wrote; one that is locked or damaged is let through.

    Raises:
        ConfigError: says which way round it is, in one sentence.
    """
    import mlflow
    from alembic.script import ScriptDirectory

    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=LOOK_SECONDS)) as db:
            (version,) = db.execute("SELECT version_num FROM alembic_version").fetchone()
    except (sqlite3.Error, TypeError):
        return
    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    known = {script.revision for script in scripts.walk_revisions()}
    if version not in known:
        raise ConfigError(
            f"{path} was written by a newer MLflow than {mlflow.__version__} (its schema is {version}); "
            "install that one, or move the file away"
        )
    if version not in scripts.get_heads():
        raise ConfigError(
            f"{path} was written by an older MLflow than {mlflow.__version__} (its schema is {version}); "
            f"take a copy of it, then run: mlflow db upgrade sqlite:///{path}"
        )


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


def log_run(
    root: Path,
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
        Its page under `make ui`; None where MLflow could not be written (which is logged).
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
        logger.warning("MLflow was not written (%s)", reason_of(error))
        return None
    return f"http://127.0.0.1:{UI_PORT}/{page_of(experiment_id, run_id)}"
