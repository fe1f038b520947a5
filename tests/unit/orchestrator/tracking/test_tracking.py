"""MLflow as a projection of the ledger: a finished sweep without Ray, real MLflow on a temporary SQLite."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.ledger import Ledger, adapter_store
from orchestrator.report import content as report
from orchestrator.settings import SweepSettings, sweep_folder
from orchestrator.tracking import artifacts, contents
from orchestrator.tracking.inputs import source_of
from orchestrator.tracking.models import ALIAS
from orchestrator.tracking.projection import Tracker
from orchestrator.tracking.store import store_uri
from tests.support.stores import place_store
from tests.support.sweeps import WORKLOAD, make, snapshot
from tests.support.swept import COUNTS, swept


def tracked(settings: SweepSettings, root: Path, *, interrupted: bool = False):
    """MLflow after a whole publish but for the sweep's files, which take longest: the client and the parent run."""
    from mlflow import MlflowClient

    ledger = Ledger(sweep_folder(settings.name, root) / "ledger.db")
    tracker = Tracker(settings, ledger, root)
    tracker.finish(SweepSnapshot.of(settings, ledger), [], interrupted=interrupted)
    ledger.close()
    client = MlflowClient(store_uri(root))
    return client, client.get_run(tracker.run_id)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished sweep, written twice: root, result, client, parent run."""
    root = tmp_path_factory.mktemp("tracking") / "mlflow_runs"
    place_store(root)
    settings, result = swept(root)
    tracked(settings, root)
    return root, result, *tracked(settings, root)


def models_of(client, parent):
    return client.search_logged_models([parent.info.experiment_id])


# --- the rows


def test_the_rows_are_the_one_input_of_the_parent_run_with_source_digest_and_what_was_dropped(finished):
    _, _, _, parent = finished
    (found,) = parent.inputs.dataset_inputs
    assert WORKLOAD.data_digest.startswith(found.dataset.digest)
    assert json.loads(found.dataset.source)["uri"].endswith("/trainables/demo/alpaca_demo.json")
    assert json.loads(found.dataset.profile) == {"num_rows": 1000, "sha256": WORKLOAD.data_digest, **COUNTS}
    tags = {tag.key: tag.value for tag in found.tags}
    assert tags == {"mlflow.data.context": "training"} | {f"rows {what}": str(n) for what, n in COUNTS.items()}


def test_rows_of_the_hub_are_named_by_their_id_and_a_file_by_its_address(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text("[]")
    assert source_of("tatsu-lab/alpaca") == ("hugging_face", {"path": "tatsu-lab/alpaca"})
    assert source_of(str(file)) == ("local", {"uri": file.as_uri()})


def test_the_run_says_which_split_and_columns_were_read_and_what_was_found_and_of_older_sweeps_nothing(tmp_path):
    _, result = swept(tmp_path, n_tasks=1)
    said = {"data_split": "c/test", "columns": "messages=turns", "rows_found": "1,500 chat rows, 3,200 assistant turns"}

    def tags(**values: str):
        facts = result.facts | {"workload": asdict(replace(WORKLOAD, **values))}
        known = replace(result, facts=facts)
        of_run = contents.of_sweep(known, report.report_of(known), "id", ("0", "1"), has_front=False, final=True)
        return {name: value for name, value in of_run.tags.items() if name in said}

    assert tags(**said) == said
    assert tags() == {}
    whole = contents.of_sweep(result, report.report_of(result), "id", ("0", "1"), has_front=False, final=True)
    assert {"data_split", "columns"} <= {*whole.params}


def test_samples_are_one_table_of_the_parent_run_however_often_it_is_written(finished):
    _, result, client, parent = finished
    table = client._read_from_file(client.download_artifacts(parent.info.run_id, artifacts.SAMPLES))
    samples, best = report.report_of(result).samples, report.report_of(result).best_4bit
    assert table["prompt"].tolist() == [sample.prompt for sample in samples] == ["Name a tree.", "Name a fish."]
    assert table["4 bits"].tolist() == [sample.quantized for sample in samples]
    assert set(table["trial"]) == {best}
    assert json.loads(parent.data.tags[artifacts.TABLES]) == [{"path": artifacts.SAMPLES, "type": "table"}]


# --- the models


def test_each_member_of_the_front_is_one_model_that_is_linked_to_its_run(finished):
    _, result, client, parent = finished
    models = models_of(client, parent)
    assert sorted(model.tags["trial_key"] for model in models) == sorted(result.front.keys)
    assert len(models) > 1
    for model in models:
        run = client.get_run(model.source_run_id)
        assert run.data.tags["trial_key"] == model.tags["trial_key"]
        assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
        assert model.status == "READY"
        assert model.params == run.data.params


def test_a_model_carries_its_trials_figures_once(finished):
    _, result, client, parent = finished
    trials = {trial.key: trial for trial in result.trials}
    for model in models_of(client, parent):
        trial = trials[model.tags["trial_key"]]
        values = {metric.key: metric.value for metric in model.metrics}
        assert len(values) == len(model.metrics)
        assert values["eval_loss_nats"] == trial.history[-1].eval_loss_nats
        assert values["peak_memory_mib"] == trial.cost.peak_memory_mib
        assert ("embedding_cosine" in values) == (trial.config.precision == "nf4")


def test_a_models_artifacts_are_its_adapters_files(finished, tmp_path):
    _, _, client, parent = finished
    for model in models_of(client, parent):
        names = [file.path for file in client.list_logged_model_artifacts(model.model_id)]
        assert sorted(names) == [adapter_store.CHECKSUMS, adapter_store.WEIGHTS]
        stored = Path(model.artifact_location.removeprefix("file://")) / adapter_store.WEIGHTS
        assert stored.read_bytes() == model.tags["trial_key"].encode()


def test_only_the_best_of_the_report_is_registered_and_only_once(finished):
    root, result, client, _ = finished
    ledger = Ledger(sweep_folder("t", root) / "ledger.db")
    best = report.report_of(SweepSnapshot.of(result.settings, ledger)).best_loss
    ledger.close()
    (registered,) = client.search_registered_models()
    (version,) = client.search_model_versions()
    assert registered.name == version.name == "t"
    assert version.tags["trial_key"] == next(trial.key for trial in result.trials if trial.number == best)
    assert client.get_model_version_by_alias("t", ALIAS).version == version.version
    assert version.status == "READY"


def test_an_interrupted_sweep_has_no_model_yet_and_a_model_goes_when_its_trial_leaves_the_front(tmp_path):
    place_store(tmp_path)
    settings, _ = swept(tmp_path, n_tasks=3)
    client, parent = tracked(settings, tmp_path, interrupted=True)
    assert models_of(client, parent) == []
    assert client.search_registered_models() == []
    settings, result = swept(tmp_path)
    client, parent = tracked(settings, tmp_path)
    before = {model.tags["trial_key"] for model in models_of(client, parent)}
    assert before == result.front.keys
    first = result.front.members[0]
    smaller = replace(result, entries=tuple(entry for entry in result.entries if entry.result is first))
    ledger = Ledger(sweep_folder("t", tmp_path) / "ledger.db")
    Tracker(settings, ledger, tmp_path)._write_models(smaller)
    ledger.close()
    assert {model.tags["trial_key"] for model in models_of(client, parent)} == {first.key}


def test_a_model_that_was_left_half_written_is_written_on(tmp_path):
    place_store(tmp_path)
    settings, result = swept(tmp_path)
    ledger = Ledger(sweep_folder("t", tmp_path) / "ledger.db")
    tracker = Tracker(settings, ledger, tmp_path)
    key = result.front.members[0].key
    tags = {"sweep_id": ledger.fact("id"), "trial_key": key}
    tracker.sync(final=True)
    child = tracker._runs.children[key]
    half = tracker._client.create_logged_model(tracker.experiment_id, "half", source_run_id=child, tags=tags)
    ledger.close()
    client, parent = tracked(settings, tmp_path)
    (model,) = [model for model in models_of(client, parent) if model.tags["trial_key"] == key]
    assert (model.model_id, model.status) == (half.model_id, "READY")
    names = {file.path for file in client.list_logged_model_artifacts(model.model_id)}
    assert names == {adapter_store.CHECKSUMS, adapter_store.WEIGHTS}


def test_a_field_that_later_versions_added_to_the_workload_changes_no_artifact_of_an_earlier_sweep():
    recorded = {name: value for name, value in asdict(WORKLOAD).items() if name not in ("columns", "row_kind")}
    written = artifacts.texts(snapshot(make(), [], {"workload": recorded}))["environment.json"]
    assert json.loads(written)["workload"] == recorded
