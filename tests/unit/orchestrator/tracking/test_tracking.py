"""MLflow as a projection of the ledger: a finished sweep without Ray, real MLflow on a temporary SQLite."""

import json
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.analysis import verdict
from orchestrator.analysis.describe import describe
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.ledger import Ledger, adapter_store
from orchestrator.ledger.rows import Entry
from orchestrator.report import content as report
from orchestrator.settings import SweepSettings, sweep_folder
from orchestrator.tracking import artifacts, contents, trials, view
from orchestrator.tracking.inputs import source_of
from orchestrator.tracking.models import ALIAS
from orchestrator.tracking.projection import Tracker
from orchestrator.tracking.store import store_file, store_uri
from tests.support.stores import place_store
from tests.support.sweeps import (
    WORKLOAD,
    evaluated_pair,
    likeness,
    make,
    measurement,
    similarity,
    snapshot,
    trial,
)
from tests.support.swept import COUNTS, swept
from trainables.values.config import TrialConfig


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


# --- the trials


def test_a_trials_run_is_named_by_its_number_and_by_which_seed_of_its_config_it_is():
    config = TrialConfig(precision="nf4", rank=8, alpha=8, seed=3)
    half = config.at_other_precision
    ran = [
        trial(17, config=config),
        trial(18, config=half, origin="baseline"),
        trial(41, config=replace(config, seed=5), origin="replicate"),
        trial(42, config=replace(config, seed=4), origin="replicate", state="queued"),
        trial(43, config=replace(half, seed=4), origin="baseline replicate"),
    ]
    found = trials.standings(snapshot(make(), ran, {}))
    assert [trials.name_of(one, found[one.key].place) for one in ran] == [
        "17 nf4 r8",
        "18 16bit r8 baseline",
        "41 seed 3 of 3",
        "42 seed 2 of 3",
        "43 baseline seed 2 of 2",
    ]
    assert found[ran[3].key].place.first == 17


def test_a_run_that_an_earlier_version_named_otherwise_is_renamed(tmp_path):
    place_store(tmp_path)
    settings, _ = swept(tmp_path, n_tasks=1)
    ledger = Ledger(sweep_folder("t", tmp_path) / "ledger.db")
    first = Tracker(settings, ledger, tmp_path)
    first.sync()
    ledger.close()
    (run_id,) = first._runs.children.values()
    first._client.update_run(run_id, name="000 as an earlier version named it")
    client, _ = tracked(settings, tmp_path, interrupted=True)
    assert client.get_run(run_id).info.run_name == "0 nf4 r1"
    assert client.get_run(run_id).info.status == "RUNNING"  # it waits for its similarity


def children_of(client, parent) -> dict[str, Any]:
    found = client.search_runs([parent.info.experiment_id], "tags.child_of_sweep != ''")
    return {run.data.tags["trial_key"]: run for run in found}


def test_a_trials_description_is_its_config_what_it_came_to_and_how_to_get_it_in_a_line_each(finished):
    _, result, client, parent = finished
    runs = children_of(client, parent)
    for one in result.trials:
        config, came_to, how = runs[one.key].data.tags["mlflow.note.content"].split("  \n")
        assert describe(one.config) in config
        assert came_to.startswith(f"completed; peak MiB {one.cost.peak_memory_mib:.1f}; ")
        assert f"loss (nats) {one.history[-1].eval_loss_nats:.4f}" in came_to
        assert ("cosine 0.9900" in came_to) == (one.config.precision == "nf4")
        assert ("on the front" in came_to) == (one.key in result.front.keys)
        assert how.startswith(f"`qlora-sweep export t DEST --trial {one.number}`")


def test_a_trial_that_was_stopped_says_at_which_step_and_why_and_that_it_has_no_adapter():
    stopped = trial(state="pruned", history=(measurement(25, 3.0),), reason="worse *than* half")
    note = trials.note_of(stopped, trials.standings(snapshot(make(), [stopped], {}))[stopped.key])
    _, came_to, how = note.split("  \n")
    assert came_to.startswith("pruned at step 25; worse \\*than\\* half; ")
    assert how.startswith("no adapter")


def test_a_trials_metrics_are_objectives_and_losses_and_all_else_is_in_one_table(finished):
    _, result, client, parent = finished
    runs = children_of(client, parent)
    for one in result.trials:
        run = runs[one.key]
        expected = {"peak_memory_mib", "seconds_per_step", "eval_loss_nats", "train_loss_nats", "rank"}
        if one.config.precision == "nf4":
            expected |= {"embedding_cosine", "token_match_rate", "kl_nats"}
        assert {name for name in run.data.metrics if not name.startswith("test_")} == expected
        assert json.loads(run.data.tags[artifacts.TABLES]) == [{"path": trials.FIGURES, "type": "table"}]
        table = client._read_from_file(client.download_artifacts(run.info.run_id, trials.FIGURES))
        rows = {(row["figure"], row["of"]): row for row in table.to_dict("records")}
        assert len(rows) == len(table)
        ends = {(name, ""): value for name, value in run.data.metrics.items() if name in ("rank", "peak_memory_mib")}
        ends |= {("train_seconds", ""): 1.0, ("tokens_per_second", ""): one.cost.tokens_per_second}
        if one.similarity:
            compared = one.similarity
            ends["centered_cosine", ""] = compared.quantized.centered_cosine.value
            ends["embedding_cosine", "untuned"] = compared.untuned.embedding_cosine.value
            assert rows["top1_agreement", ""]["low"] == compared.quantized.top1_agreement.low
        assert {key: rows[key]["value"] for key in ends} == ends


def test_every_figure_of_a_trial_is_in_its_table():
    """Also those of a finalist on the test rows, beside other seeds, with what it lost."""
    pair = replace(evaluated_pair(0.02), comparison=replace(similarity(), replicates=(likeness(kl_nats=0.02),) * 2))
    one = trial(config=TrialConfig(precision="nf4", rank=4, alpha=8), similarity=pair.comparison, test_evaluation=pair)
    entry = Entry(result=one, params={}, measured_at=(1.0,))
    standing = trials.standings(snapshot(make(), [one], {}))[one.key]
    whole = trials.of_trial(entry, "id", "parent", standing, final=True)
    table = json.loads(whole.texts[trials.FIGURES])
    held = [value for row in table["data"] for value in row[2:] if value != ""]
    figures = {name: value for name, value, *_ in (*whole.points, *whole.others)}
    assert Counter(held) == Counter(figures.values())
    assert figures.keys() > verdict.figures_of(one).keys() | {"lost_share_low", "rounding_share"}


def test_a_trials_training_loss_has_a_point_every_ten_steps(tmp_path):
    one = replace(measurement(25, 3.0), train_curve=((10, 4.0), (20, 3.5), (25, 3.0)))
    entry = Entry(result=trial(history=(one,)), params={}, measured_at=(7.0,))
    standing = trials.standings(snapshot(make(), [entry.result], {}))[entry.result.key]
    points = trials.of_trial(entry, "id", "parent", standing, final=True).points
    assert [point for point in points if point[0] == trials.CURVE] == [
        (trials.CURVE, loss, 7000, step) for step, loss in one.train_curve
    ]


def test_the_experiment_keeps_a_view_of_the_sweeps_trials_which_its_description_links(finished):
    _, _, client, parent = finished
    name, value = view.tag_of("5" * 32)
    assert client.get_experiment(parent.info.experiment_id).tags[name] == value
    assert name.removeprefix(view.TAG) in parent.data.tags["mlflow.note.content"].splitlines()[0]
    state = json.loads(value)
    (kind, column), *_ = [column.split(".", 1) for column in state["selectedColumns"]]
    assert (kind, column) == ("params", "`rank`")
    assert set(state["selectedColumns"]) <= set(state["columnOrder"]) == set(state["columnWidths"])
    shown = client.search_runs([parent.info.experiment_id], state["searchFilter"])
    assert {run.info.run_id for run in shown} == {run.info.run_id for run in children_of(client, parent).values()}


def test_writing_a_sweep_again_changes_nothing(finished):
    root, result, _, _ = finished

    def kept():
        with closing(sqlite3.connect(store_file(root))) as db:
            tables = ("runs", "metrics", "latest_metrics", "params", "tags", "experiment_tags", "logged_models")
            return {name: sorted(map(str, db.execute(f"SELECT * FROM {name}"))) for name in tables}

    before = kept()
    tracked(result.settings, root)
    assert kept() == before


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
