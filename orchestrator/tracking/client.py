"""MLflow's client: the one place that imports mlflow, and a run that belongs to no sweep."""

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from orchestrator.analysis.describe import text_of
from orchestrator.security.redaction import reason_of
from orchestrator.tracking.store import CLIENT, EXPERIMENT, LOOK_SECONDS, UI_PORT, page_of, store_file, store_uri
from trainables.values.errors import ConfigError

os.environ.update(CLIENT | os.environ)  # before its import, which reads some of them
import mlflow
from mlflow import MlflowClient, entities
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

__all__ = ["MlflowException", "SystemMetricsMonitor", "check_schema", "entities", "log_run", "open_client"]

logger = logging.getLogger(__name__)


def open_client(uri: str, root: Path) -> tuple[Any, str]:
    """An MlflowClient and the id of our experiment, both created once, under a lock.

    Raises:
        ConfigError: the store is of another MLflow's schema.
        Exception: whatever MLflow raises where a store cannot be read or a server does not answer.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
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


def _create_store(root: Path) -> None:
    """Make the SQLite store under another name and rename it: a program killed meanwhile leaves none that is half made.

    MLflow migrates a new store through all its versions, and can neither go on nor begin again where that was cut off.
    """
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
    from alembic.script import ScriptDirectory  # a third of a second, for a store that cannot be opened

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
        client, experiment_id = open_client(store_uri(root), root)
        run_id = client.create_run(experiment_id, tags=dict(tags), run_name=name).info.run_id
        client.log_batch(run_id, params=[entities.Param(key, text_of(value)) for key, value in params.items()])
        now = int(time.time() * 1000)
        client.log_batch(run_id, metrics=[entities.Metric(key, value, now, step) for key, value, step in metrics])
        for path in artifacts:
            client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, status="FINISHED")
    except Exception as error:
        logger.warning("MLflow was not written (%s)", reason_of(error))
        return None
    return f"http://127.0.0.1:{UI_PORT}/{page_of(experiment_id, run_id)}"
