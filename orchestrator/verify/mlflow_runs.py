"""A sweep's runs and models in MLflow against what the projection writes there; MLflow is only read here."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.ledger import adapter_store
from orchestrator.ledger.rows import Entry
from orchestrator.report.content import SweepReport, report_of
from orchestrator.report.digests import FILES, sha256_of
from orchestrator.security.redaction import reason_of
from orchestrator.tracking.artifacts import texts
from orchestrator.tracking.client import MlflowException, open_client
from orchestrator.tracking.contents import GROWS, MODEL_TYPE, NOTE, PARENT, Contents, has_picture, of_sweep
from orchestrator.tracking.inputs import digest_of, tags_of
from orchestrator.tracking.models import ALIAS, models_of
from orchestrator.tracking.runs import families
from orchestrator.tracking.store import store_uri
from orchestrator.tracking.trials import of_model, of_trial, standings
from orchestrator.tracking.view import tag_of
from orchestrator.verify import points
from orchestrator.verify.files import COMPARED
from orchestrator.verify.ledger import Difference

RunFault = tuple[str, bool]
"""What is wrong with a run, and whether it has to be deleted and written anew: MLflow changes neither params nor
points."""


def difference(text: str, run: Any = None, model: Any = None) -> Difference:
    run_id, model_id = run.info.run_id if run else None, model.model_id if model else None
    return Difference(part="MLflow", text=text, run_id=run_id, model_id=model_id)


def of_mlflow(kept: SweepSnapshot, root: Path) -> list[Difference]:
    """One run of the sweep, and one child for each trial, none twice, each with all that the projection writes.

    Whatever keeps MLflow from being read is a difference too.
    """
    uri = kept.settings.tracking_uri or store_uri(root)
    if uri == store_uri(root) and not (root / "mlflow.db").is_file():
        return [difference(f"there is no store {root / 'mlflow.db'}")]
    try:
        client, experiment_id = open_client(uri, root)
        return list(_of_store(Store(kept=kept, client=client, uri=uri, experiment_id=experiment_id)))
    except Exception as error:
        return [difference(f"cannot be read ({reason_of(error, kept.settings.tracking_uri)})")]


def forget(kept: SweepSnapshot, root: Path, differences: Collection[Difference]) -> None:
    """Delete runs that differ, as MLflow does: they can be brought back there; and models."""
    client, _ = open_client(kept.settings.tracking_uri or store_uri(root), root)
    for run_id in sorted({difference.run_id for difference in differences} - {None}):
        client.delete_run(run_id)
    for model_id in sorted({difference.model_id for difference in differences} - {None}):
        client.delete_logged_model(model_id)


def adapter_copies(kept: SweepSnapshot, root: Path) -> dict[str, Path]:
    """Folder of each trial's adapter in MLflow by key, where its artifacts lie on this machine."""
    client, experiment_id = open_client(kept.settings.tracking_uri or store_uri(root), root)
    folders = {}
    for _, children in families(client, experiment_id, str(kept.facts.get("id"))):
        for run in children:
            artifacts = _folder(run.info.artifact_uri)
            if artifacts:
                folders[run.data.tags.get("trial_key", "")] = artifacts / "adapter"
    return folders


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Where MLflow keeps a sweep, and the sweep as its ledger has it.

    Attributes:
        client: an MlflowClient of `uri`.
    """

    kept: SweepSnapshot
    client: Any
    uri: str
    experiment_id: str

    @property
    def sweep_id(self) -> str:
        return str(self.kept.facts.get("id"))


def _of_store(store: Store) -> Iterator[Difference]:
    (parent, children), *others = families(store.client, store.experiment_id, store.sweep_id)
    for other, theirs in [(parent, children), *others] if parent is None else others:
        if other is not None:
            yield difference(f"run {other.info.run_id} is a second run of this sweep", other)
        whose = "no run" if other is None else "a second run"
        for run in theirs:
            yield difference(f"run {run.info.run_id} is a child of {whose} of this sweep", run)
    if parent is None:
        yield difference("there is no run of this sweep")
        return
    report = report_of(store.kept)
    yield from _of_parent(store, report, parent)
    yield from _of_children(store, parent, children)
    yield from _of_models(store, children, report.best_loss)


# --- the sweep's own run


def _of_parent(store: Store, report: SweepReport, parent: Any) -> Iterator[Difference]:
    kept = store.kept
    if kept.workload is None:
        return
    expected = of_sweep(
        kept,
        report,
        store.sweep_id,
        (store.experiment_id, parent.info.run_id),
        has_front=has_picture(kept.facts.get(FILES)),
        final=not kept.is_open,
    )
    if parent.info.status != "FINISHED":
        yield difference(f"the run of this sweep is {parent.info.status}, not FINISHED")
    found = points.histories(store.client, store.uri, [(parent, expected.points)])[parent.info.run_id]
    for text, must_go in (*_of_run(parent, expected, found), *_of_input(kept, parent)):
        yield difference(f"the run of this sweep: {text}", parent if must_go else None)
    yield from _of_artifacts(kept, parent, texts(kept))
    name, view = tag_of(store.sweep_id)
    if store.client.get_experiment(store.experiment_id).tags.get(name) != view:
        yield difference("the view of this sweep's trials is not the one that was written")


def _of_input(kept: SweepSnapshot, parent: Any) -> Iterator[RunFault]:
    """The rows. Their source and profile MLflow keeps once for all sweeps that read them."""
    digest = digest_of(kept.workload) if kept.workload else ""
    there = [one for one in parent.inputs.dataset_inputs if one.dataset.digest == digest]
    n_inputs = len(parent.inputs.dataset_inputs)
    if len(there) != 1 or n_inputs != 1:
        yield f"its inputs are {n_inputs} data sets, not the one of its rows", n_inputs > 0
    elif {tag.key: tag.value for tag in there[0].tags} != tags_of(kept.facts.get("data_counts") or {}):
        yield "counts of its rows are not those of the ledger", True


def _of_artifacts(kept: SweepSnapshot, parent: Any, written: Mapping[str, str]) -> Iterator[Difference]:
    """What was logged with the run, where its artifacts lie on this machine."""
    artifacts = _folder(parent.info.artifact_uri)
    if artifacts is None:
        return
    expected = dict(kept.facts.get(FILES) or {})
    for name in () if expected else COMPARED:
        expected[name] = sha256_of(kept.folder / name)
    for name, text in written.items():
        expected[name] = hashlib.sha256(text.encode()).hexdigest()
    for name, digest in expected.items():
        if sha256_of(artifacts / name) != digest:
            yield difference(f"{name} of the sweep's run is not the one that was written")


# --- trials' runs


def _of_children(store: Store, parent: Any, children: list[Any]) -> Iterator[Difference]:
    kept = store.kept
    entries = {entry.result.key: entry for entry in kept.entries}
    standing_of, final, due = standings(kept), not kept.is_open, []
    for run in children:
        key = run.data.tags.get("trial_key", "")
        if key not in entries:
            yield difference(f"run {run.info.run_id} is of no trial of the ledger", run)
        elif entries[key].result.state != "queued":
            contents = of_trial(entries[key], store.sweep_id, parent.info.run_id, standing_of[key], final=final)
            due.append((run, entries[key], contents))
    found = points.histories(store.client, store.uri, [(run, contents.points) for run, _, contents in due])
    by_trial: dict[str, list[tuple[list[RunFault], Any]]] = {}
    for run, entry, contents in due:
        faults = [*_of_run(run, contents, found[run.info.run_id]), *_of_files(run, contents, entry)]
        by_trial.setdefault(entry.result.key, []).append((faults, run))
    for key, runs in by_trial.items():
        (faults, run), *others = sorted(runs, key=lambda pair: len(pair[0]))  # the best of several is the trial's
        for text, must_go in faults:
            yield difference(f"trial {entries[key].result.number}: {text}", run if must_go else None)
        for _, other in others:
            yield difference(f"run {other.info.run_id} is a second one of trial {entries[key].result.number}", other)
    for key, entry in entries.items():
        if key not in by_trial and entry.result.state != "queued":
            yield difference(f"trial {entry.result.number} has no run")


def _of_run(run: Any, expected: Contents, found: set[Any]) -> Iterator[RunFault]:
    """A run against its contents.

    Args:
        found: its points.
    """
    if expected.status != run.info.status and PARENT in expected.tags:
        yield f"its run is {run.info.status}, expected {expected.status}", False
    if run.info.run_name != expected.name:
        yield f"its run is named {run.info.run_name!r}, expected {expected.name!r}", False
    if expected.ended_ms not in (None, run.info.end_time) and run.info.status == expected.status:
        yield f"its run ended at {run.info.end_time}, the ledger has {expected.ended_ms} ms", False
    tags, params = dict(run.data.tags), dict(run.data.params)
    if GROWS in params:  # as once it was
        tags.setdefault(GROWS, params.pop(GROWS))
    for name, value in expected.tags.items():
        there = tags.get(name)
        if there != value and name == NOTE:
            yield "its description is not what the ledger gives", False
        elif there != value:
            yield f"tag {name} is {there!r}, the ledger has {value!r}", False
    if params != expected.params:
        wrong = dict(expected.params.items() ^ params.items())
        yield f"params differ from what was asked: {', '.join(sorted(wrong))}", True
    faults = points.faults(found, run.data.metrics, expected.points, expected.others)
    if faults:
        yield faults.text, not faults.only_gone


def _of_files(run: Any, expected: Contents, entry: Entry) -> Iterator[RunFault]:
    """What was logged with a trial's run, where its artifacts lie on this machine."""
    artifacts = _folder(run.info.artifact_uri)
    for name, text in expected.texts.items() if artifacts else ():
        if sha256_of(artifacts / name) != hashlib.sha256(text.encode()).hexdigest():
            yield f"{name} is not the one that was written", False
    if expected.status == "FINISHED" and artifacts:
        fault = adapter_store.fault(artifacts / "adapter", entry.adapter_sha256)
        if fault:
            yield f"its copy of the adapter: {fault}", False


# --- models


def _of_models(store: Store, children: Sequence[Any], best: int | None) -> Iterator[Difference]:
    """One whole model for each member of the front that has an adapter, and the best of them registered.

    Args:
        best: number of the member that the report calls best.
    """
    kept = store.kept
    runs = {run.data.tags.get("trial_key"): run for run in children}
    models: dict[str, list[Any]] = {}
    for model in models_of(store.client, store.experiment_id, store.sweep_id):
        models.setdefault(model.tags["trial_key"], []).append(model)
    for entry in kept.entries:
        trial, there = entry.result, models.pop(entry.result.key, [])
        most = int(trial.key in kept.front.keys)
        least = most if (kept.folder / "adapters" / trial.key).is_dir() else 0
        whole = [model for model in there if model.status == "READY"]
        if not least <= len(whole) <= most:
            yield difference(f"trial {trial.number} has {len(whole)} models, expected {most}")
        if len(whole) < len(there):
            yield difference(f"trial {trial.number} has a model that is half written")
        for model in whole[:1] if len(whole) == len(there) == most else ():
            for text in _of_model(model, entry, store.sweep_id, runs.get(trial.key)):
                yield difference(f"trial {trial.number}: its model: {text}", model=model)
            if trial.number == best and not kept.is_open and not _is_registered(store, model):
                yield difference(f"the registered model {kept.settings.name}@{ALIAS} is not that of trial {best}")
    if models:
        yield difference(f"{sum(map(len, models.values()))} models are of no trial of the ledger")


def _of_model(model: Any, entry: Entry, sweep_id: str, run: Any) -> Iterator[str]:
    expected = of_model(entry, sweep_id)
    if (model.name, model.model_type) != (expected.name, MODEL_TYPE):
        yield f"it is {model.name!r}, a {model.model_type}; expected {expected.name!r}, a {MODEL_TYPE}"
    if expected.params != model.params or not expected.tags.items() <= model.tags.items():
        yield "its params or tags are not those of its trial"
    there = points.stored_points(model.metrics or ())
    if there - points.as_stored(expected.others) != points.as_stored(expected.points):
        yield "its metrics are not those of its trial"
    linked = {output.model_id for output in (run.outputs.model_outputs if run and run.outputs else ())}
    if run and (model.source_run_id != run.info.run_id or model.model_id not in linked):
        yield "it is not linked with the run of its trial"
    folder = _folder(model.artifact_location)
    fault = adapter_store.fault(folder, entry.adapter_sha256) if folder else None
    if fault:
        yield fault


def _is_registered(store: Store, model: Any) -> bool:
    """Whether a model is the one under the alias of the sweep's registered model."""
    try:
        version = store.client.get_model_version_by_alias(store.kept.settings.name, ALIAS)
    except MlflowException:
        return False
    return (version.tags.get("model_id"), version.source) == (model.model_id, model.artifact_location)


def _folder(uri: str) -> Path | None:
    """Where artifacts lie on this machine; None where they lie elsewhere."""
    place = urlsplit(uri)
    return Path(unquote(place.path)) if place.scheme in ("", "file") else None
