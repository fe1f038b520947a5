"""A sweep's runs in MLflow against its ledger; MLflow is only read here."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from orchestrator.ledger.rows import Entry
from orchestrator.security.redaction import reason_of
from orchestrator.tracking.models import models_of
from orchestrator.tracking.runs import STATUS, families
from orchestrator.tracking.store import open_client, store_uri
from orchestrator.verify.ledger import Difference, Kept
from orchestrator.workers import adapter_store

COPIES = ("front.json", "trials.parquet")
"""Of the sweep's folder, which its run holds too."""


def difference(text: str, run: Any = None) -> Difference:
    return Difference(part="MLflow", text=text, run_id=run.info.run_id if run else None)


def of_mlflow(kept: Kept, root: Path) -> list[Difference]:
    """One finished run of the sweep, and one child for each trial, none twice, none running, with its figures.

    Whatever keeps MLflow from being read is a difference too.
    """
    uri = kept.settings.tracking_uri or store_uri(root)
    if uri == store_uri(root) and not (root / "mlflow.db").is_file():
        return [difference(f"there is no store {root / 'mlflow.db'}")]
    try:
        client, experiment_id = open_client(uri, root)
        return list(_of_store(kept, client, experiment_id))
    except Exception as error:
        return [difference(f"cannot be read ({reason_of(error, kept.settings.tracking_uri)})")]


def forget(kept: Kept, root: Path, run_ids: set[str]) -> None:
    """Delete runs, as MLflow does: they can be brought back there."""
    client, _ = open_client(kept.settings.tracking_uri or store_uri(root), root)
    for run_id in sorted(run_ids):
        client.delete_run(run_id)


def adapter_copies(kept: Kept, root: Path) -> dict[str, Path]:
    """Folder of each trial's adapter in MLflow by key, where its artifacts lie on this machine."""
    client, experiment_id = open_client(kept.settings.tracking_uri or store_uri(root), root)
    folders = {}
    for _, children in families(client, experiment_id, str(kept.facts["id"])):
        for run in children:
            artifacts = _artifacts(run)
            if artifacts:
                folders[run.data.tags.get("trial_key", "")] = artifacts / "adapter"
    return folders


def _of_store(kept: Kept, client: Any, experiment_id: str) -> Iterator[Difference]:
    (parent, children), *others = families(client, experiment_id, str(kept.facts["id"]))
    for other, theirs in [(parent, children), *others] if parent is None else others:
        if other is not None:
            yield difference(f"run {other.info.run_id} is a second run of this sweep", other)
        whose = "no run" if other is None else "a second run"
        for run in theirs:
            yield difference(f"run {run.info.run_id} is a child of {whose} of this sweep", run)
    if parent is None:
        yield difference("there is no run of this sweep")
        return
    if parent.info.status != "FINISHED":
        yield difference(f"the run of this sweep is {parent.info.status}, not FINISHED")
    artifacts = _artifacts(parent)
    for name in COPIES if artifacts else ():
        if _bytes(artifacts / name) != _bytes(kept.folder / name):
            yield difference(f"{name} of the sweep's run is not the one in {kept.folder}")
    yield from _of_children(kept, children)
    yield from _of_models(kept, models_of(client, experiment_id, str(kept.facts["id"])))


def _of_children(kept: Kept, children: list[Any]) -> Iterator[Difference]:
    entries = {entry.result.key: entry for entry in kept.entries}
    of_trial: dict[str, list[tuple[list[str], Any]]] = {}
    for run in children:
        key = run.data.tags.get("trial_key", "")
        if key in entries:
            faults = list(_of_child(run, entries[key], key in kept.front.keys))
            of_trial.setdefault(key, []).append((faults, run))
        else:
            yield difference(f"run {run.info.run_id} is of no trial of the ledger", run)
    for key, runs in of_trial.items():
        (faults, run), *others = sorted(runs, key=lambda pair: len(pair[0]))  # the best of several is the trial's
        for text in faults:
            yield difference(f"trial {entries[key].result.number}: {text}", run)
        for _, other in others:
            yield difference(f"run {other.info.run_id} is a second one of trial {entries[key].result.number}", other)
    for key, entry in entries.items():
        if key not in of_trial and entry.result.state != "queued":
            yield difference(f"trial {entry.result.number} has no run")


def _of_models(kept: Kept, models: list[Any]) -> Iterator[Difference]:
    """One model for each member of the front that has an adapter."""
    there = Counter(model.tags["trial_key"] for model in models if model.status == "READY")
    half = [model.tags["trial_key"] for model in models if model.status != "READY"]
    for trial in kept.trials:
        most = int(trial.key in kept.front.keys)
        least = most if (kept.folder / "adapters" / trial.key).is_dir() else 0
        count = there.pop(trial.key, 0)
        if not least <= count <= most:
            yield difference(f"trial {trial.number} has {count} models, expected {most}")
        if trial.key in half:
            yield difference(f"trial {trial.number} has a model that is half written")
    if there:
        yield difference(f"{there.total()} models are of no trial of the ledger")


def _of_child(run: Any, entry: Entry, on_front: bool) -> Iterator[str]:
    trial = entry.result
    status = STATUS.get(trial.state, "RUNNING")
    if run.info.status != status:
        yield f"its run is {run.info.status}, expected {status}"
    tags = {"state": trial.state, "on_pareto_front": str(on_front).lower(), "origin": trial.origin}
    for name, value in tags.items():
        if run.data.tags.get(name) != value:
            yield f"tag {name} is {run.data.tags.get(name)!r}, the ledger has {value!r}"
    params = {n: "+".join(v) if isinstance(v, list) else str(v) for n, v in trial.config.to_dict().items()}
    if run.data.params != params:
        wrong = sorted(n for n in {*params, *run.data.params} if params.get(n) != run.data.params.get(n))
        yield f"params differ from its config: {', '.join(wrong)}"
    last = asdict(trial.history[-1]) if trial.history else {}
    last.pop("step", None)
    for name, value in last.items():
        found = run.data.metrics.get(name)
        if isfinite(value) and found != value:
            yield f"{name} is {found}, the ledger has {value}"
    artifacts = _artifacts(run)
    if trial.state == "completed" and artifacts:
        fault = adapter_store.fault(artifacts / "adapter", entry.adapter_sha256)
        if fault:
            yield f"its copy of the adapter: {fault}"


def _artifacts(run: Any) -> Path | None:
    """Where a run's artifacts lie on this machine; None where they lie elsewhere."""
    place = urlsplit(run.info.artifact_uri)
    return Path(unquote(place.path)) if place.scheme in ("", "file") else None


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
