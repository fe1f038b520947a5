"""A sweep's runs in MLflow against its ledger; MLflow is only read here."""

from collections.abc import Iterator
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from orchestrator import adapter_store
from orchestrator.ledger_rows import Entry
from orchestrator.tracking import STATUS
from orchestrator.tracking_store import open_client, store_uri
from orchestrator.verify_ledger import Difference, Kept

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
        return [difference(f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})")]


def forget(kept: Kept, root: Path, run_ids: set[str]) -> None:
    """Delete runs, as MLflow does: they can be brought back there."""
    client, _ = open_client(kept.settings.tracking_uri or store_uri(root), root)
    for run_id in sorted(run_ids):
        client.delete_run(run_id)


def adapter_copies(kept: Kept, root: Path) -> dict[str, Path]:
    """Folder of each trial's adapter in MLflow by key, where its artifacts lie on this machine."""
    client, experiment_id = open_client(kept.settings.tracking_uri or store_uri(root), root)
    folders = {}
    for parent in _search(client, experiment_id, "sweep_id", str(kept.facts["id"])):
        for run in _search(client, experiment_id, "mlflow.parentRunId", parent.info.run_id):
            artifacts = _artifacts(run)
            if artifacts:
                folders[run.data.tags.get("trial_key", "")] = artifacts / "adapter"
    return folders


def _of_store(kept: Kept, client: Any, experiment_id: str) -> Iterator[Difference]:
    parents = _search(client, experiment_id, "sweep_id", str(kept.facts["id"]))
    if not parents:
        yield difference("there is no run of this sweep")
        return
    families = [(run, _search(client, experiment_id, "mlflow.parentRunId", run.info.run_id)) for run in parents]
    (parent, children), *others = sorted(families, key=lambda family: -len(family[1]))
    for other, theirs in others:
        yield difference(f"run {other.info.run_id} is a second run of this sweep", other)
        for run in theirs:
            yield difference(f"run {run.info.run_id} is a child of a second run of this sweep", run)
    if parent.info.status != "FINISHED":
        yield difference(f"the run of this sweep is {parent.info.status}, not FINISHED")
    artifacts = _artifacts(parent)
    for name in COPIES if artifacts else ():
        if _bytes(artifacts / name) != _bytes(kept.folder / name):
            yield difference(f"{name} of the sweep's run is not the one in {kept.folder}")
    yield from _of_children(kept, children)


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


def _search(client: Any, experiment_id: str, tag: str, value: str) -> list[Any]:
    runs, token = [], None
    while True:
        page = client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def _artifacts(run: Any) -> Path | None:
    """Where a run's artifacts lie on this machine; None where they lie elsewhere."""
    place = urlsplit(run.info.artifact_uri)
    return Path(unquote(place.path)) if place.scheme in ("", "file") else None


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
