"""MLflow as a projection of the ledger: only the modules tracking*.py import mlflow.

`Tracker.sync` brings MLflow up to date with a ledger and may be called again and again: it looks
first for the runs that are there (by tags), and every metric carries the ledger's own time, so
that writing twice changes nothing. MLflow is never read to decide anything.
"""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator import report, report_text
from orchestrator.ledger import Ledger
from orchestrator.ledger_rows import Entry
from orchestrator.settings import SweepSettings, sweep_folder
from orchestrator.sweep import SweepResult, result_of
from orchestrator.tracking_inputs import log_data
from orchestrator.tracking_models import FrontModels
from orchestrator.verdict import figures_of, verdict_of
from trainables.config import State, canonical_json
from trainables.errors import SweepError
from trainables.results import TrialResult

EXPERIMENT = "qlora-sweep"
SYNC_SECONDS = 5.0
UI_PORT = 5000
NOTE_CHARS = 5000
"""Of the parent run's description; MLflow takes 8000."""
STATUS: Mapping[State, str] = {
    "completed": "FINISHED",
    "pruned": "KILLED",
    "refused": "KILLED",
    "oom": "FAILED",
    "diverged": "FAILED",
    "failed": "FAILED",
}


def store_uri(root: Path) -> str:
    """The SQLite store under `root`."""
    return f"sqlite:///{(root / 'mlflow.db').resolve()}"


def open_client(uri: str, root: Path) -> tuple[Any, str]:
    """An MlflowClient and the id of our experiment, created once, under a lock."""
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
        try:
            return client, client.create_experiment(EXPERIMENT, artifact_location=location, tags=kind)
        except Exception:  # on a server another machine's sweep may have been first; the lock is this machine's
            found = client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
            return client, found.experiment_id


def page_of(experiment_id: str, run_id: str) -> str:
    """A run's page on any MLflow server; without the last part the browser that comes first opens it as GenAI."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


class Tracker:
    """Writes one sweep into MLflow: a parent run, and a child run for each trial."""

    def __init__(self, settings: SweepSettings, ledger: Ledger, root: Path) -> None:
        self._settings = settings
        self._ledger = ledger
        self._folder = sweep_folder(settings.name, root)
        self._client, self.experiment_id = open_client(settings.tracking_uri or store_uri(root), root)
        self._tags: dict[str, dict[str, str]] = {}  # run id -> tags as last written
        self._n_rungs: dict[str, int] = {}
        self._ended: dict[str, tuple[State, bool]] = {}  # run id -> state, and whether it was judged
        self.run_id = self._find_parent() or self._create_parent()
        self._children = self._find_children()
        self._data_logged = False

    # --- runs that are there

    def _search(self, tag: str, value: str) -> list[Any]:
        runs, token = [], None
        while True:
            page = self._client.search_runs(
                [self.experiment_id], f"tags.`{tag}` = '{value}'", max_results=1000, page_token=token
            )
            runs += page
            token = page.token
            if not token:
                return runs

    def _find_parent(self) -> str | None:
        found = self._search("sweep_id", self._ledger.fact("id"))
        return found[0].info.run_id if found else None

    def _find_children(self) -> dict[str, str]:
        children = {}
        for run in self._search("mlflow.parentRunId", self.run_id):
            children[run.data.tags["trial_key"]] = run.info.run_id
        return children

    def _create_parent(self) -> str:
        from mlflow.entities import Param

        created = self._ledger.fact("created_at")
        tags = {"sweep_id": self._ledger.fact("id"), "space": self._settings.space.name}
        run = self._client.create_run(
            self.experiment_id, start_time=int(created * 1000), tags=tags, run_name=self._settings.name
        )
        asked = self._settings.model_dump(mode="json", exclude={"space", "name", "tracking_uri", "address"})
        self._client.log_batch(run.info.run_id, params=[Param(name, _text(value)) for name, value in asked.items()])
        return run.info.run_id

    # --- bringing them up to date

    def sync(self, *, final: bool = False) -> None:
        """Write what the ledger holds and MLflow does not.

        Args:
            final: no similarity will come any more, so trials that wait for theirs end too.
        """
        result = result_of(self._settings, self._ledger)
        if not self._data_logged:
            log_data(self._client, self.run_id, result.workload, self._ledger.fact("data_counts", {}))
            self._data_logged = True
        for entry in self._ledger.entries():
            if entry.result.state != "queued":
                self._sync_trial(entry, on_front=entry.result.key in result.front.keys, final=final)
        note = report_text.description(report.read(self._settings, self._ledger), NOTE_CHARS)
        self._set_tags(self.run_id, {"mlflow.note.content": note, **_workload_tags(result)})

    def _sync_trial(self, entry: Entry, *, on_front: bool, final: bool) -> None:
        trial = entry.result
        run_id = self._children.get(trial.key)
        if run_id is None:
            run_id = self._children[trial.key] = self._create_child(trial)
        self._sync_metrics(run_id, entry)
        tags = {"state": trial.state, "on_pareto_front": str(on_front).lower(), "origin": trial.origin}
        self._set_tags(run_id, tags | ({"reason": trial.reason} if trial.reason else {}))
        waits = trial.state == "completed" and trial.config.precision == "nf4" and trial.similarity is None
        if (
            trial.state in STATUS
            and self._ended.get(run_id) != (trial.state, trial.judgement is not None)
            and (final or not waits)
        ):
            self._end_child(run_id, entry)

    def _create_child(self, trial: TrialResult) -> str:
        config = trial.config
        tags = {
            "mlflow.parentRunId": self.run_id,
            "trial_key": trial.key,
            "precision": config.precision,
            "rank": str(config.rank),
        }
        run = self._client.create_run(
            self.experiment_id,
            start_time=int((trial.started_at or 0) * 1000),
            tags=tags,
            run_name=f"{trial.number:03d} {config.precision} r{config.rank}",
        )
        return run.info.run_id

    def _sync_metrics(self, run_id: str, entry: Entry) -> None:
        from mlflow.entities import Metric, Param

        trial = entry.result
        first = run_id not in self._n_rungs
        done = self._n_rungs.get(run_id, 0)
        if done > len(trial.history):  # the trial was taken up again
            done = 0
        new = list(zip(trial.history, entry.measured_at, strict=True))[done:]
        if first:
            params = [Param(name, _text(value)) for name, value in trial.config.to_dict().items()]
            self._client.log_batch(run_id, params=params)
        for measurement, at in new:
            values = asdict(measurement) | {"rank": trial.config.rank}
            step = values.pop("step")
            metrics = [Metric(name, float(value), int(at * 1000), step) for name, value in values.items()]
            self._client.log_batch(run_id, metrics=metrics)
        self._n_rungs[run_id] = len(trial.history)

    def _end_child(self, run_id: str, entry: Entry) -> None:
        from mlflow.entities import Metric

        trial = entry.result
        ended = int((trial.ended_at or 0) * 1000)
        values = figures_of(trial)
        if trial.train_seconds is not None:
            values["train_seconds"] = trial.train_seconds
        metrics = [Metric(name, float(value), ended, trial.config.max_steps) for name, value in values.items()]
        if metrics:
            self._client.log_batch(run_id, metrics=metrics)
        tags = {f"env.{name}": value for name, value in trial.environment.items()}
        verdict = verdict_of(trial, self._settings.min_similarity)
        self._set_tags(run_id, tags | ({"verdict": str(verdict)} if verdict else {}))
        adapter = self._folder / "adapters" / trial.key
        if trial.state == "completed" and adapter.is_dir():
            self._client.log_artifacts(run_id, str(adapter), "adapter")
        self._client.set_terminated(run_id, status=STATUS[trial.state], end_time=ended)
        self._ended[run_id] = (trial.state, trial.judgement is not None)

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        known = self._tags.setdefault(run_id, {})
        changed = {name: value for name, value in tags.items() if known.get(name) != value}
        if changed:
            self._client.log_batch(run_id, tags=[RunTag(name, value) for name, value in changed.items()])
            known.update(changed)

    def finish(self, result: SweepResult, files: Sequence[Path]) -> None:
        """Bring everything up to date, log the sweep's files, and end the parent run."""
        from mlflow.entities import Metric

        self.sync(final=not result.interrupted)
        for path in files:
            self._client.log_artifact(self.run_id, str(path), "figures" if path.parent.name == "figures" else None)
        self._client.log_artifact(self.run_id, str(self._folder / "settings.json"))
        facts = {"workload": asdict(result.workload), "data_counts": self._ledger.fact("data_counts")}
        facts["environments"] = sorted({canonical_json(dict(t.environment)) for t in result.trials if t.environment})
        self._client.log_dict(self.run_id, facts, "environment.json")
        end = int(max((t.ended_at or 0 for t in result.trials), default=0) * 1000)
        values = {"hypervolume": result.front.hypervolume, "front_size": float(len(result.front.members))}
        for state in STATUS:
            values[f"n_{state}"] = float(sum(t.state == state for t in result.trials))
        self._client.log_batch(self.run_id, metrics=[Metric(k, v, end, 0) for k, v in values.items()])
        if result.interrupted:
            self._client.update_run(self.run_id, status="RUNNING")
        else:
            self._client.set_terminated(self.run_id, status="FINISHED", end_time=end)
            self._write_models(result)

    def _write_models(self, result: SweepResult) -> None:
        """Of the front's members, once it is final; the one that the report calls best is registered."""
        adapters, sweep_id = self._folder / "adapters", self._ledger.fact("id")
        models = FrontModels(self._client, self.experiment_id, sweep_id, adapters, self._children)
        on_front = [entry for entry in self._ledger.entries() if entry.result.key in result.front.keys]
        written = models.write(on_front)
        best = report.read(self._settings, self._ledger).best_loss
        for trial in result.front.members:
            if trial.number == best and trial.key in written:
                models.register(self._settings.name, trial, written[trial.key])


class Follower:
    """Keeps MLflow up to date from a thread of its own while a sweep runs; never stops the sweep."""

    def __init__(self, settings: SweepSettings, root: Path) -> None:
        self._settings = settings
        self._root = root
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
        self.fault: str | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._stop.set()
            self._thread.join()

    def _follow(self) -> None:
        ledger = Ledger(sweep_folder(self._settings.name, self._root) / "ledger.db")
        try:
            tracker = None
            while not self._stop.wait(SYNC_SECONDS):
                try:
                    tracker = tracker or Tracker(self._settings, ledger, self._root)
                    tracker.sync()
                    self.fault = None
                except Exception as error:
                    self.fault = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        finally:
            ledger.close()


def publish(settings: SweepSettings, root: Path, say: Callable[[str], None], *, interrupted: bool) -> str | None:
    """Write a sweep's files and its MLflow runs, whole.

    Returns:
        The page of the parent run under `make ui`, or the run's id on another server; None where MLflow
        could not be written (said through `say`; `qlora-sweep sync` does it later).
    """
    folder = sweep_folder(settings.name, root)
    ledger = Ledger(folder / "ledger.db")
    try:
        result = result_of(settings, ledger, interrupted=interrupted)
        from orchestrator import outputs

        files = outputs.write(result, report.read(settings, ledger), folder)
        tracker = Tracker(settings, ledger, root)
        tracker.finish(result, files)
    except SweepError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        say(f"MLflow was not written ({type(error).__name__}: {reason}); later: qlora-sweep sync {settings.name}")
        return None
    finally:
        ledger.close()
    page = page_of(tracker.experiment_id, tracker.run_id)
    return f"http://127.0.0.1:{UI_PORT}/{page}" if settings.tracking_uri is None else f"run {tracker.run_id}"


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
        client.log_batch(run_id, params=[Param(key, _text(value)) for key, value in params.items()])
        now = int(time.time() * 1000)
        client.log_batch(run_id, metrics=[Metric(key, value, now, step) for key, value, step in metrics])
        for path in artifacts:
            client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, status="FINISHED")
    except Exception as error:
        say(f"MLflow was not written ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
        return None
    return f"http://127.0.0.1:{UI_PORT}/{page_of(experiment_id, run_id)}"


def _workload_tags(result: SweepResult) -> dict[str, str]:
    names = ("base_model", "weights", "data", "compute_dtype")
    return {name: str(getattr(result.workload, name)) for name in names}


def _text(value: Any) -> str:
    return "+".join(value) if isinstance(value, list) else str(value)
