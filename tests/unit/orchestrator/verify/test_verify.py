"""`qlora-sweep verify`: a sweep that is whole, each way of breaking it by name, and what a repair brings back."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from orchestrator import settings
from orchestrator.analysis.budgets import ENDED, FINISHED
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.driver.extend import with_trials
from orchestrator.ledger import FAULTS, Ledger, adapter_store
from orchestrator.ledger.ownership import owned
from orchestrator.report import digests
from orchestrator.settings import command as hints
from orchestrator.settings import stored
from orchestrator.tracking.client import open_client
from orchestrator.tracking.models import ALIAS
from orchestrator.tracking.publishing import publish
from orchestrator.tracking.store import store_file, store_uri
from orchestrator.tracking.trials import FIGURES, of_trial, standings
from orchestrator.tracking.view import tag_of
from orchestrator.verify import checks as verify
from orchestrator.verify import points
from orchestrator.verify.files import is_over
from orchestrator.verify.ledger import MAX_TO_COME, of_ledger, read
from tests.support.in_process import called
from tests.support.stores import place_store
from tests.support.sweeps import GRID, TPE, WORKLOAD, Desk, completes, make
from trainables.values.config import TrialConfig
from trainables.values.errors import ConfigError


def outcome(task):
    """A loss of its own for each rank, so that the front has several members."""
    return completes(task, loss=2.0 + 1 / task.config.rank)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A finished sweep "t" over the grid of 6 points, with its files and its MLflow runs."""
    folder = tmp_path_factory.mktemp("state") / "mlflow_runs"
    asked = make(GRID, n_trials=6, asynchronous=True)
    desk = finished_desk(folder, asked)
    desk.ledger.close()
    place_store(folder)
    publish(asked, folder, interrupted=False)
    return folder


def verified(root: Path, *, repair: bool = False) -> verify.Verified:
    return verify.run("t", root, repair=repair)


def found(root: Path) -> list[str]:
    return [str(difference) for difference in verified(root).differences]


def client_of(root: Path) -> Any:
    return open_client(store_uri(root), root)[0]


def child(root: Path, number: int) -> Any:
    """The MLflow run of a trial."""
    with closing(Ledger(root / "sweeps" / "t" / "ledger.db", read_only=True)) as ledger:
        key = ledger.trials()[number].key
    client = client_of(root)
    (run,) = client.search_runs([open_client(store_uri(root), root)[1]], f"tags.trial_key = '{key}'")
    return run


def parent(root: Path) -> Any:
    """The sweep's own MLflow run."""
    client, experiment_id = open_client(store_uri(root), root)
    (run,) = client.search_runs([experiment_id], "tags.sweep_id = 'abc'")
    return run


def members(root: Path) -> list[int]:
    """Numbers of the front's members."""
    asked, folder = make(GRID, n_trials=6, asynchronous=True), root / "sweeps" / "t"
    front = verify.read(asked, folder).front
    return sorted(trial.number for trial in front.members)


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    """A file with other content for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    yield
    path.write_bytes(before)


@contextmanager
def in_store(root: Path, *statements: str) -> Iterator[None]:
    """MLflow's store as it is after someone's SQL, for a while."""
    with closing(sqlite3.connect(store_file(root))) as db, closing(sqlite3.connect(":memory:")) as before:
        db.backup(before)
        db.executescript(";".join(statements))
        yield
        before.backup(db)


def flipped(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    return bytes(content)


# --- ways to break a sweep: each undoes itself, and says what verify must say


@contextmanager
def child_deleted(root: Path) -> Iterator[list[str]]:
    run_id = child(root, 1).info.run_id
    client_of(root).delete_run(run_id)
    yield ["MLflow: trial 1 has no run"]
    client_of(root).restore_run(run_id)


@contextmanager
def child_doubled(root: Path) -> Iterator[list[str]]:
    run, client = child(root, 2), client_of(root)
    double = client.create_run(run.info.experiment_id, tags=dict(run.data.tags)).info.run_id
    yield [f"MLflow: run {double} is a second one of trial 2"]
    client.delete_run(double)


@contextmanager
def child_of_nothing(root: Path) -> Iterator[list[str]]:
    run, client = child(root, 6), client_of(root)
    stray = client.create_run(run.info.experiment_id, tags=dict(run.data.tags) | {"trial_key": "f" * 64}).info.run_id
    yield [f"MLflow: run {stray} is of no trial of the ledger"]
    client.delete_run(stray)


@contextmanager
def parent_doubled(root: Path) -> Iterator[list[str]]:
    client = client_of(root)
    double = client.create_run(child(root, 2).info.experiment_id, tags={"sweep_id": "abc"}).info.run_id
    yield [f"MLflow: run {double} is a second run of this sweep"]
    client.delete_run(double)


@contextmanager
def model_doubled(root: Path) -> Iterator[list[str]]:
    client = client_of(root)
    model = client.search_logged_models([child(root, 0).info.experiment_id])[0]
    double = client.create_logged_model(model.experiment_id, "double", model.source_run_id, tags=dict(model.tags))
    client.finalize_logged_model(double.model_id, "READY")
    with closing(Ledger(root / "sweeps" / "t" / "ledger.db", read_only=True)) as ledger:
        number = next(trial.number for trial in ledger.trials() if trial.key == model.tags["trial_key"])
    yield [f"MLflow: trial {number} has 2 models, expected 1"]
    client.delete_logged_model(double.model_id)


@contextmanager
def child_running(root: Path) -> Iterator[list[str]]:
    run_id = child(root, 3).info.run_id
    client_of(root).update_run(run_id, status="RUNNING")
    yield ["MLflow: trial 3: its run is RUNNING, expected FINISHED"]
    client_of(root).update_run(run_id, status="FINISHED")


@contextmanager
def child_off_the_front(root: Path) -> Iterator[list[str]]:
    run = child(root, 4)
    was = run.data.tags["on_pareto_front"]
    now = "false" if was == "true" else "true"
    client_of(root).set_tag(run.info.run_id, "on_pareto_front", now)
    yield [f"MLflow: trial 4: tag on_pareto_front is '{now}', the ledger has '{was}'"]
    client_of(root).set_tag(run.info.run_id, "on_pareto_front", was)


@contextmanager
def child_with_another_loss(root: Path) -> Iterator[list[str]]:
    """Its last value, on the run's page and in its history."""
    of_run = f"WHERE run_uuid = '{child(root, 7).info.run_id}' AND key = 'eval_loss_nats' AND step = 8"
    with in_store(root, *(f"UPDATE {table} SET value = 9.0 {of_run}" for table in ("metrics", "latest_metrics"))):
        yield ["MLflow: trial 7: eval_loss_nats is 9.0, the ledger has 2.25"]


@contextmanager
def early_rung_tripled(root: Path) -> Iterator[list[str]]:
    of_run = f"WHERE run_uuid = '{child(root, 5).info.run_id}' AND key = 'eval_loss_nats' AND step = 4"
    with in_store(root, f"UPDATE metrics SET value = 3 * value {of_run}"):
        yield ["MLflow: trial 5: eval_loss_nats at step 4 is 6.75, the ledger has 2.25"]


@contextmanager
def loss_history_deleted(root: Path) -> Iterator[list[str]]:
    """The page still shows its last value."""
    of_run = f"WHERE run_uuid = '{child(root, 3).info.run_id}' AND key LIKE '%_loss_nats'"
    with in_store(root, f"DELETE FROM metrics {of_run}"):
        yield ["MLflow: trial 3: eval_loss_nats at step"]


@contextmanager
def similarities_rewritten(root: Path) -> Iterator[list[str]]:
    """Of every 4-bit trial, and of no model."""
    of_runs = "WHERE key LIKE '%cosine%' AND key NOT LIKE 'test_%'"
    with in_store(root, *(f"UPDATE {table} SET value = 0.25 {of_runs}" for table in ("metrics", "latest_metrics"))):
        texts = "embedding_cosine is 0.25, the ledger has 0.99"
        yield [f"MLflow: trial {number}: {texts}" for number in (0, 2, 4)]


@contextmanager
def page_alone_rewritten(root: Path) -> Iterator[list[str]]:
    of_run = f"WHERE run_uuid = '{child(root, 6).info.run_id}' AND key = 'seconds_per_step'"
    with in_store(root, f"UPDATE latest_metrics SET value = 0.5 {of_run}"):
        yield ["MLflow: trial 6: seconds_per_step is 0.5, the ledger has 1.0"]


@contextmanager
def child_renamed(root: Path) -> Iterator[list[str]]:
    run, client = child(root, 0), client_of(root)
    client.update_run(run.info.run_id, name="000 nf4 r1")
    yield ["MLflow: trial 0: its run is named '000 nf4 r1', expected '0 nf4 r1'"]
    client.update_run(run.info.run_id, name=run.info.run_name)


@contextmanager
def table_of_figures_emptied(root: Path) -> Iterator[list[str]]:
    with changed(Path(child(root, 7).info.artifact_uri.removeprefix("file://")) / FIGURES, b""):
        yield [f"MLflow: trial 7: {FIGURES} is not the one that was written"]


@contextmanager
def view_of_other_trials(root: Path) -> Iterator[list[str]]:
    client, experiment_id = open_client(store_uri(root), root)
    name, value = tag_of("abc")
    client.set_experiment_tag(experiment_id, name, "{}")
    yield ["MLflow: the view of this sweep's trials is not the one that was written"]
    client.set_experiment_tag(experiment_id, name, value)


@contextmanager
def sums_of_the_sweep_rewritten(root: Path) -> Iterator[list[str]]:
    of_run = f"WHERE run_uuid = '{parent(root).info.run_id}' AND key = 'n_completed'"
    with in_store(root, *(f"UPDATE {table} SET value = 99 {of_run}" for table in ("metrics", "latest_metrics"))):
        yield ["MLflow: the run of this sweep: n_completed is 99.0, the ledger has 8.0"]


@contextmanager
def description_replaced(root: Path) -> Iterator[list[str]]:
    run, client, name = parent(root), client_of(root), "mlflow.note.content"
    client.set_tag(run.info.run_id, name, "All is well.")
    yield ["MLflow: the run of this sweep: its description is not what the ledger gives"]
    client.set_tag(run.info.run_id, name, run.data.tags[name])


@contextmanager
def params_rewritten(root: Path) -> Iterator[list[str]]:
    with in_store(root, "UPDATE params SET value = 'x' WHERE key IN ('min_similarity', 'loop')"):
        children = "params differ from what was asked: loop"
        yield [
            "MLflow: the run of this sweep: params differ from what was asked: loop, min_similarity",
            *(f"MLflow: trial {number}: {children}" for number in range(8)),
        ]


@contextmanager
def rows_counted_otherwise(root: Path) -> Iterator[list[str]]:
    with in_store(root, "UPDATE input_tags SET value = '9' WHERE name = 'rows train'"):
        yield ["MLflow: the run of this sweep: counts of its rows are not those of the ledger"]


@contextmanager
def report_of_the_run_emptied(root: Path) -> Iterator[list[str]]:
    with changed(Path(parent(root).info.artifact_uri.removeprefix("file://")) / "report.html", b""):
        yield ["MLflow: report.html of the sweep's run is not the one that was written"]


@contextmanager
def model_rewritten(root: Path) -> Iterator[list[str]]:
    with in_store(root, "UPDATE logged_model_metrics SET metric_value = 0.5 WHERE metric_name = 'eval_loss_nats'"):
        yield [f"MLflow: trial {number}: its model: its metrics are not those of its trial" for number in members(root)]


@contextmanager
def another_is_called_best(root: Path) -> Iterator[list[str]]:
    client = client_of(root)
    best = client.get_model_version_by_alias("t", ALIAS).version
    client.delete_registered_model_alias("t", ALIAS)
    yield ["MLflow: the registered model t@best is not that of trial"]
    client.set_registered_model_alias("t", ALIAS, best)


@contextmanager
def settings_edited(root: Path) -> Iterator[list[str]]:
    path = root / "sweeps" / "t" / "settings.json"
    asked = json.loads(path.read_text()) | {"min_similarity": 0.5, "base_model": "gpt2"}
    asked["space"]["fixed"]["alpha"] = 16
    with changed(path, json.dumps(asked).encode()):
        yield [
            "settings.json: base_model is 'gpt2', the sweep began with 'demo'",
            "settings.json: min_similarity is 0.5, the sweep began with None",
            "settings.json: space.fixed is {'alpha': 16, ",
        ]


@contextmanager
def report_and_figures_emptied(root: Path) -> Iterator[list[str]]:
    names = ("figures.html", "figures/rank_memory.png", "report.html", "report.md")
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(changed(root / "sweeps" / "t" / name, b""))
        yield [f"files: {name} is not what was written (its SHA-256 differs)" for name in names]


@contextmanager
def figure_gone(root: Path) -> Iterator[list[str]]:
    path = root / "sweeps" / "t" / "figures" / "similarity.png"
    content = path.read_bytes()
    path.unlink()
    yield ["files: figures/similarity.png is gone"]
    path.write_bytes(content)


@contextmanager
def adapter_flipped(root: Path) -> Iterator[list[str]]:
    path = adapter(root, 0) / adapter_store.WEIGHTS
    with changed(path, flipped(path)):
        yield [f"adapters: trial 0: {path.name} is not what was recorded (its SHA-256 differs) in {path.parent}"]


@contextmanager
def adapter_gone(root: Path) -> Iterator[list[str]]:
    folder = adapter(root, 1)
    shutil.move(folder, root / "elsewhere")
    yield [f"adapters: trial 1: {adapter_store.WEIGHTS} is gone in {folder}"]
    shutil.rmtree(folder, ignore_errors=True)
    shutil.move(root / "elsewhere", folder)


@contextmanager
def table_truncated(root: Path) -> Iterator[list[str]]:
    path = root / "sweeps" / "t" / "trials.parquet"
    with changed(path, path.read_bytes()[:-100]):
        yield ["trials.parquet: cannot be read (ArrowInvalid: "]


@contextmanager
def files_gone(root: Path) -> Iterator[list[str]]:
    names = ("front.json", "trials.parquet")
    paths = [root / "sweeps" / "t" / name for name in names]
    before = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    yield [f"{name}: is not there" for name in names]
    for path, content in zip(paths, before, strict=True):
        path.write_bytes(content)


@contextmanager
def table_of_other_values(root: Path) -> Iterator[list[str]]:
    path = root / "sweeps" / "t" / "trials.parquet"
    rows = pq.read_table(path)
    losses = rows["eval_loss_nats"].to_pylist()
    other = rows.drop_columns("eval_loss_nats").append_column("eval_loss_nats", [[9.0, *losses[1:]]])
    scratch = root / "other.parquet"
    pq.write_table(other.slice(0, len(rows) - 1), scratch)
    with changed(path, scratch.read_bytes()):
        yield [
            f"trials.parquet: trial {len(rows) - 1} is not in a row",
            f"trials.parquet: trial 0: eval_loss_nats is 9.0, the ledger has {losses[0]}",
        ]


@contextmanager
def front_edited(root: Path) -> Iterator[list[str]]:
    path = root / "sweeps" / "t" / "front.json"
    front = json.loads(path.read_text())
    front["hypervolume"] += 1
    with changed(path, json.dumps(front, indent=2).encode()):
        yield ["front.json: hypervolume is not what the ledger gives"]


@contextmanager
def front_without_a_member(root: Path) -> Iterator[list[str]]:
    path = root / "sweeps" / "t" / "front.json"
    front = json.loads(path.read_text())
    gone = front["members"].pop()["key"]
    with closing(Ledger(root / "sweeps" / "t" / "ledger.db", read_only=True)) as ledger:
        number = ledger.entry(gone).result.number
    with changed(path, json.dumps(front).encode()):
        yield [f"front.json: trial {number} is not on the front"]


def adapter(root: Path, number: int) -> Path:
    with closing(Ledger(root / "sweeps" / "t" / "ledger.db", read_only=True)) as ledger:
        return root / "sweeps" / "t" / "adapters" / ledger.trials()[number].key


DAMAGE = (
    (
        child_deleted,
        child_doubled,
        child_of_nothing,
        child_running,
        child_off_the_front,
        child_with_another_loss,
        early_rung_tripled,
        loss_history_deleted,
        similarities_rewritten,
        page_alone_rewritten,
        child_renamed,
        table_of_figures_emptied,
        view_of_other_trials,
        sums_of_the_sweep_rewritten,
        description_replaced,
        rows_counted_otherwise,
        report_of_the_run_emptied,
        model_rewritten,
        another_is_called_best,
        adapter_flipped,
        table_truncated,
        front_edited,
        settings_edited,
        report_and_figures_emptied,
        figure_gone,
    ),
    (params_rewritten, parent_doubled, model_doubled, adapter_gone, table_of_other_values, front_without_a_member),
    (files_gone,),
)
"""Those of one group can be there at once."""


def test_a_finished_sweep_is_whole(root):
    assert found(root) == []


@pytest.mark.parametrize("group", DAMAGE, ids=["first", "second", "third"])
def test_each_damage_is_named_and_nothing_else(root, group):
    with ExitStack() as stack:
        expected = [start for damage in group for start in stack.enter_context(damage(root))]
        lines = found(root)
    unnamed = [start for start in expected if not any(line.startswith(start) for line in lines)]
    assert not unnamed, "\n".join(lines)
    assert len(lines) == len(expected), [line for line in lines if not line.startswith(tuple(expected))]
    assert found(root) == []


def test_every_value_of_the_runs_is_compared(root):
    """All of MLflow's rows changed at once; what finds the runs, and what MLflow writes for itself, is left alone."""
    ours = "key NOT IN ('sweep_id', 'child_of_sweep', 'trial_key') AND (key NOT LIKE 'mlflow.%' OR key LIKE '%note%')"
    tables = ("metrics", "latest_metrics")
    with closing(sqlite3.connect(store_file(root))) as db:
        of_run = "SELECT run_uuid, count(*) FROM {} JOIN runs USING (run_uuid) WHERE lifecycle_stage = 'active' AND {} "
        of_run += "GROUP BY run_uuid"
        n_metrics = dict(db.execute(of_run.format("latest_metrics", "1")).fetchall())
        n_tags = dict(db.execute(of_run.format("tags", ours)).fetchall())
    with in_store(
        root,
        *(f"UPDATE {table} SET value = value + 1" for table in tables),
        "UPDATE params SET value = value || 'x'",
        f"UPDATE tags SET value = value || 'x' WHERE {ours}",
        "UPDATE runs SET end_time = end_time + 1",
    ):
        lines = found(root)
    for run, whose in [(parent(root), "the run of this sweep"), *((child(root, n), f"trial {n}") for n in range(8))]:
        mine = [line for line in lines if line.startswith(f"MLflow: {whose}: ")]
        run_id, names = run.info.run_id, ", ".join(sorted(run.data.params))
        assert any(f"(and {n_metrics[run_id] - 1} more)" in line for line in mine), mine
        assert sum(": tag " in line or "description" in line for line in mine) == n_tags[run_id]
        assert any(line.endswith(f"asked: {names}") for line in mine)
        assert any("its run ended at" in line for line in mine)


def test_a_server_that_is_asked_tells_the_same_points_as_the_file(root):
    runs = [parent(root), child(root, 0), child(root, 5)]
    expected = [(run, [("embedding_cosine", 0.99, run.info.end_time, 8)]) for run in runs]
    asked = points.histories(client_of(root), "http://server", expected)
    assert asked == points.histories(client_of(root), store_uri(root), expected)
    assert min(map(len, asked.values())) > 20


def test_only_points_from_before_a_trial_was_taken_up_again_may_stand_beside_the_ledgers():
    nan = float("nan")
    expected = [("loss", 2.0, 1000, 4), ("loss", nan, 2000, 8), ("seconds", float("inf"), 2000, 8)]
    last = {"loss": nan, "seconds": 1e999}
    whole = {(name, points.stored(value), at, step) for name, value, at, step in expected}
    assert points.faults(whole, last, expected) is None
    assert points.faults(whole | {("loss", 2.5, 900, 4), ("system/cpu", 1.0, 1, 1)}, last, expected) is None
    for surplus in (("loss", 2.5, 1000, 4), ("loss", 2.5, 900, 5), ("other", 1.0, 1, 1)):
        assert not points.faults(whole | {surplus}, last, expected).only_gone
    gone = points.faults(whole - {("loss", 2.0, 1000, 4)}, last, expected)
    assert (gone.text, gone.only_gone) == ("loss at step 4 is gone, the ledger has 2.0", True)
    assert not points.faults(whole, {"loss": nan}, expected).only_gone  # the page alone lacks it


def test_values_that_an_earlier_version_wrote_as_metrics_may_stand_beside_the_table_unless_they_are_wrong(root):
    kept, trial = read(make(GRID, n_trials=6, asynchronous=True), root / "sweeps" / "t"), 2
    entry, run, client = kept.entries[trial], child(root, trial), client_of(root)
    contents = of_trial(entry, "abc", parent(root).info.run_id, standings(kept)[entry.result.key], final=True)
    with in_store(root):
        for name, value, at, step in contents.others:
            client.log_metric(run.info.run_id, name, value, timestamp=at, step=step)
        assert {"train_seconds", "centered_cosine", "tokens_per_second"} <= set(
            client.get_run(run.info.run_id).data.metrics
        )
        assert found(root) == []
        client.log_metric(run.info.run_id, "train_seconds", 7.0, timestamp=run.info.end_time, step=8)
        assert found(root) == ["MLflow: trial 2: train_seconds at step 8 is 7.0, the ledger has 1.0"]


def test_a_repair_brings_back_all_that_can_be_and_says_what_it_found(root):
    """Damage of every kind at once; an adapter comes back from its copy in MLflow."""
    with ExitStack() as stack:
        for damage in DAMAGE[0]:
            stack.enter_context(damage(root))
        n_before = len(found(root))
        assert n_before >= len(DAMAGE[0])
        after = verified(root, repair=True)
        assert after.differences == ()
        assert len(after.repaired) == n_before
        assert found(root) == []
        with closing(Ledger(root / "sweeps" / "t" / "ledger.db", read_only=True)) as ledger:
            entry = ledger.entries()[0]
        assert adapter_store.fault(adapter(root, 0), entry.adapter_sha256) is None
        stack.pop_all()


def test_params_that_were_rewritten_come_back_in_runs_of_their_own(root):
    """MLflow changes no param, so the runs go, the sweep's own with them."""
    before = parent(root).info.run_id
    params_rewritten(root).__enter__()
    assert verified(root, repair=True).differences == ()
    assert parent(root).info.run_id != before


def test_the_workload_is_that_of_the_settings_and_of_every_trial(root, tmp_path):
    folder = tmp_path / "mlflow_runs" / "sweeps" / "t"
    shutil.copytree(root / "sweeps" / "t", folder)
    with closing(Ledger(folder / "ledger.db")) as ledger:
        ledger.set_fact("workload", asdict(WORKLOAD) | {"weights": "pretrained", "data": "rows.json"})
    kept = verify.read(stored.load(folder), folder)
    ran = replace(kept.entries[1].result, environment={"weights": "demo"})
    kept = replace(kept, entries=(kept.entries[0], replace(kept.entries[1], result=ran)))
    assert [str(found) for found in verify.of_workload(kept)] == [
        "ledger: data of its workload is 'rows.json', 'demo' was asked for",
        "ledger: weights of its workload are 'pretrained', which those of 'demo' are not",
        "ledger: trial 1 ran on weights 'demo', its workload has 'pretrained'",
    ]


def test_a_report_that_is_written_once_more_is_whole(root):
    report = root / "sweeps" / "t" / "report.md"
    report.write_text("by another version")
    digests.keep([report], report.parent)
    with closing(Ledger(root / "sweeps" / "t" / "ledger.db", read_only=True)) as ledger:
        assert ledger.fact(digests.FILES)["report.md"] == digests.sha256_of(report)
    assert found(root) == ["MLflow: report.md of the sweep's run is not the one that was written"]
    assert verified(root, repair=True).differences == ()


def test_an_adapter_without_a_whole_copy_stays_a_difference_after_a_repair(root):
    weights = adapter(root, 0) / adapter_store.WEIGHTS
    copy = Path(child(root, 0).info.artifact_uri.removeprefix("file://")) / "adapter" / weights.name
    before = weights.read_bytes()
    for path in (weights, copy):
        path.write_bytes(flipped(path))
    lines = [str(difference) for difference in verified(root, repair=True).differences]
    assert [line.split(" is not")[0] for line in lines] == [
        f"adapters: trial 0: {weights.name}",
        f"MLflow: trial 0: its copy of the adapter: {weights.name}",
    ]
    weights.write_bytes(before)
    assert verified(root, repair=True).differences == ()


# --- the ledger itself

LEDGER_DAMAGE = {
    "a trial that is running": (
        "UPDATE trials SET state = 'running', ended_at = NULL WHERE number = 0",
        "ledger: still to come: trial 0 is running",
    ),
    "a trial that is gone": (
        "DELETE FROM measurements WHERE key = (SELECT key FROM trials WHERE number = 1);"
        "DELETE FROM trials WHERE number = 1",
        "ledger: trial 1 is gone",
    ),
    "fewer trials than asked for": (
        "DELETE FROM measurements WHERE key = (SELECT key FROM trials ORDER BY number DESC LIMIT 1);"
        "DELETE FROM trials WHERE number = (SELECT max(number) FROM trials)",
        "still to come: it comes to",
    ),
    "a trial more than asked for": (
        "UPDATE trials SET origin = 'search'",
        "configs were asked for,",
    ),
    "a baseline of nothing": (
        "UPDATE trials SET origin = 'baseline' WHERE origin = 'search'",
        "is the baseline of no trial",
    ),
    "a config that is not its key's": (
        "UPDATE trials SET config = replace(config, '\"seed\":0', '\"seed\":7') WHERE number = 0",
        "is not that of its config",
    ),
    "a completed trial without its measurements": (
        "DELETE FROM measurements WHERE key = (SELECT key FROM trials WHERE number = 0)",
        "ledger: trial 0 is completed without a measurement at step 8",
    ),
    "a pair that was not compared": (
        "UPDATE trials SET similarity = NULL",
        "was not compared with its 16-bit baseline",
    ),
    "a finalist that was not evaluated": (
        "UPDATE trials SET test_evaluation = NULL; DELETE FROM sweep WHERE name = 'finished'",
        "was not evaluated on the test rows",
    ),
    "a reason that is gone": (
        "UPDATE trials SET state = 'failed' WHERE number = 0",
        "ledger: trial 0 is failed without a reason",
    ),
    "a point outside the space": (
        "UPDATE trials SET params = '{}' WHERE number = 0",
        "study: trial 0 stands 0 times, expected once",
    ),
}


@pytest.mark.parametrize("damage", LEDGER_DAMAGE)
def test_each_fault_of_the_ledger_is_named_and_survives_a_look(root, tmp_path, damage):
    """As this program itself would have written it: the checksums are those of the rows."""
    statements, words = LEDGER_DAMAGE[damage]
    folder = tmp_path / "mlflow_runs" / "sweeps" / "t"
    shutil.copytree(root / "sweeps" / "t", folder)
    with closing(Ledger(folder / "ledger.db")) as ledger:
        ledger._db.executescript(statements)
    kept = verify.read(stored.load(folder), folder)
    lines = [str(found) for check in (verify.of_ledger, verify.of_study) for found in check(kept)]
    assert any(words in line for line in lines), lines


def test_what_is_still_to_come_is_one_line_and_nothing_is_said_to_lack_of_trials_that_have_not_run(root, tmp_path):
    folder = tmp_path / "mlflow_runs" / "sweeps" / "t"
    shutil.copytree(root / "sweeps" / "t", folder)
    with closing(Ledger(folder / "ledger.db")) as ledger:
        ledger._db.executescript(
            "UPDATE trials SET state = 'queued', ended_at = NULL, similarity = NULL, test_evaluation = NULL;"
            "DELETE FROM sweep WHERE name = 'finished'"
        )
        n_trials = len(ledger.trials())
    lines = [str(found) for found in verify.of_ledger(verify.read(stored.load(folder), folder))]
    (line,) = [line for line in lines if "still to come" in line]
    assert line.startswith("ledger: still to come: trial 0 is queued, trial 1 is queued, ")
    assert line.endswith(f" and {n_trials - MAX_TO_COME} more; go on with: {hints.command()} resume t")
    assert "was not" not in "".join(lines)


EDITS = {
    "a value": ("UPDATE trials SET train_seconds = 7 WHERE number = 0", "trial 0 is not as it was written"),
    "a loss": ("UPDATE measurements SET eval_loss_nats = 1 WHERE step = 8", "at step 8 is not as it was written"),
    "a fact": ("UPDATE sweep SET value = '2.0' WHERE name = 'created_at'", "fact 'created_at' is not as"),
    "a checksum": ("UPDATE trials SET checksum = checksum + 1 WHERE number = 2", "trial 2 is not as it was written"),
    "a row lost": ("DELETE FROM measurements WHERE step = 8", "table measurements holds"),
    "a trial lost with its measurements": (
        "DELETE FROM measurements WHERE key = (SELECT key FROM trials WHERE number = 1);"
        "DELETE FROM trials WHERE number = 1",
        "table trials holds 7 rows, 8 were written",
    ),
    "a row added": ("INSERT INTO costs VALUES ('x', '{}', 0)", "the cost of key 'x' is not as it was written"),
    "a digest": ("UPDATE digests SET digest = digest + 1 WHERE name = 'sweep'", "table sweep holds other rows"),
    "its tables": ("DROP INDEX trials_by_state", "its tables are others"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_another_program_changed_in_the_ledger_is_named_with_what_to_do(root, tmp_path, edit):
    statements, words = EDITS[edit]
    folder = tmp_path / "sweeps" / "t"
    shutil.copytree(root / "sweeps" / "t", folder)
    with closing(sqlite3.connect(folder / "ledger.db")) as db:
        db.executescript(statements)
    (line,) = found(tmp_path)
    assert words in line
    assert line.endswith("restore it from a copy, or start under a new NAME")


def test_a_ledger_that_was_emptied_or_replaced_is_said_to_be(root, tmp_path):
    folder = tmp_path / "sweeps" / "t"
    shutil.copytree(root / "sweeps" / "t", folder)
    path = folder / "ledger.db"

    def said() -> str:
        (line,) = found(tmp_path)
        return line

    path.write_bytes(b"")
    assert "was emptied: adapters, front.json, trials.parquet are of trials" in said()
    (folder / "id").write_text("abc")
    assert "has lost its content" in said()
    path.unlink()
    assert f"{path} is gone" in said()
    with closing(Ledger(tmp_path / "other.db")) as other:
        other.set_fact("id", "xyz")
    shutil.copy(other.path, path)
    assert "is another ledger than the one that" in said()


# --- sweeps that are not finished, and stores that are not there


def test_a_sweep_that_never_started_is_one_difference(tmp_path):
    folder = settings.sweep_folder("t", tmp_path)
    stored.save(make(GRID, asynchronous=True), folder)
    Ledger(folder / "ledger.db").close()
    assert found(tmp_path) == [f"ledger: no trial was started; go on with: {hints.command()} resume t"]
    assert verified(tmp_path, repair=True).differences


def test_a_sweep_that_is_being_run_is_left_alone(root):
    with owned(root / "sweeps" / "t"), pytest.raises(ConfigError, match="let it end, or stop it: qlora-sweep stop t"):
        verified(root)


def test_without_a_store_that_is_said_and_a_look_makes_none(root, tmp_path):
    shutil.copytree(root / "sweeps", tmp_path / "sweeps")
    assert found(tmp_path) == [f"MLflow: there is no store {tmp_path / 'mlflow.db'}"]
    assert not (tmp_path / "mlflow.db").exists()
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    (line,) = found(tmp_path)
    assert line.startswith("MLflow: cannot be read (")


def states_of(root: Path) -> dict[str, tuple[int, bytes]]:
    """When each file of a sweep was written, and what it holds."""
    files = [path for path in (root / "sweeps").rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_finished_sweep_is_not_resumed_and_nothing_is_written(root):
    before = states_of(root)
    done = called("resume", "t", cwd=root.parent)
    assert done.code == 0, done.err
    (line,) = done.err.splitlines()
    assert line.startswith("sweep t is finished, nothing is left to run; what it came to: ")
    assert line.endswith("-m orchestrator.cli report t")
    assert "Pareto front" in done.out
    (root / "mlflow.db").rename(root / "mlflow.away")
    as_json = called("resume", "t", "--json", cwd=root.parent)
    (root / "mlflow.away").rename(root / "mlflow.db")
    assert len(as_json.json["members"]) == len(
        json.loads((root / "sweeps" / "t" / "front.json").read_text())["members"]
    )
    assert as_json.err.splitlines()[-1].endswith("orchestrator.cli sync t")
    assert states_of(root) == before


CONFIG = TrialConfig(precision="nf4", rank=8, alpha=8)
LEFT: dict[str, Callable[[Ledger], None]] = {
    "a comparison that failed": lambda ledger: ledger.set_fact(FAULTS, {"compare x": "no memory"}),
    "what follows the search": lambda ledger: ledger.set_fact(FINISHED, False),
    "a trial": lambda ledger: ledger.add("f" * 64, CONFIG, params={}, origin="search"),
    "its files": lambda ledger: (ledger.path.parent / "trials.parquet").unlink(),
}


@pytest.mark.parametrize("what", LEFT)
def test_a_sweep_of_which_anything_is_left_is_resumed(what, root, tmp_path):
    folder = Path(shutil.copytree(root / "sweeps" / "t", tmp_path / "t"))
    asked = stored.load(folder)
    assert is_over(read(asked, folder))
    with closing(Ledger(folder / "ledger.db")) as ledger:
        LEFT[what](ledger)
    assert not is_over(read(asked, folder))


def test_the_command_ends_with_1_and_a_line_for_each_difference(root):
    with ExitStack() as stack:
        expected = [*stack.enter_context(front_edited(root)), *stack.enter_context(child_running(root))]
        finished = called("verify", "t", cwd=root.parent)
        as_json = called("verify", "t", "--json", cwd=root.parent)
    assert (finished.code, as_json.code) == (1, 1), finished.err
    lines = finished.out.splitlines()
    assert len(lines) == len(expected) == len(as_json.json["differences"])
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True))
    assert as_json.json["whole"] is False
    assert finished.err.strip().endswith("sync t"), "what writes to MLflow what it lacks"


def test_of_a_sweep_that_mlflow_has_whole_the_command_names_no_way_to_write_it(root):
    with front_edited(root):
        assert "sync" not in called("verify", "t", cwd=root.parent).err


def test_the_command_ends_with_0_and_one_line_for_a_sweep_that_is_whole(root):
    finished = called("verify", "t", cwd=root.parent)
    assert finished.code == 0, finished.out
    (line,) = finished.out.splitlines()
    assert line.endswith("ledger, study, adapters, files and MLflow agree")


def test_an_unknown_sweep_is_named_with_exit_code_2(root):
    finished = called("verify", "tt", cwd=root.parent)
    assert finished.code == 2
    assert "no sweep 'tt'; did you mean 't'?" in finished.err
    assert "Traceback" not in finished.err


def lines_of_ledger(desk: Desk) -> list[str]:
    desk.finish()
    desk.ledger.set_fact("workload", asdict(WORKLOAD))
    return [line.text for line in of_ledger(SweepSnapshot.of(desk.settings, desk.ledger))]


def test_numbers_of_baselines_that_no_trial_needed_are_not_missed(tmp_path):
    """Of a grid of both precisions half are baselines; runs under other seeds are numbered after all that could be."""
    assert lines_of_ledger(Desk(tmp_path, make(GRID, name="t", n_trials=6, finalist_seeds=3))) == []


def test_a_sweep_that_was_given_more_trials_misses_none(tmp_path):
    begun = Desk(tmp_path, make(TPE, name="t", n_trials=3))
    assert lines_of_ledger(begun) == []
    begun.ledger.set_fact(ENDED, None)
    begun.ledger.close()
    extended = Desk(tmp_path, make(TPE, name="t", n_trials=7))
    assert lines_of_ledger(extended) == []
    assert len(extended.ledger.trials()) == 7


def test_a_finished_sweep_with_more_trials_is_whole_in_mlflow_again(tmp_path):
    folder = tmp_path / "mlflow_runs"
    asked = make(TPE, name="t", n_trials=3, asynchronous=True)
    desk = finished_desk(folder, asked)
    desk.ledger.close()
    place_store(folder)
    publish(asked, folder, interrupted=False)
    more = with_trials(asked, 5, folder)
    desk = Desk(desk.folder, more)
    desk.finish(outcome)
    desk.ledger.close()
    assert publish(more, folder, interrupted=False)
    assert len(desk_trials(folder)) == 5
    assert found(folder) == []
    assert parent(folder).data.tags["n_trials"] == "5"


def test_a_run_whose_number_of_trials_is_a_param_and_no_tag_is_the_ledgers(root):
    """As those before it was a tag have it."""
    client, run_id = client_of(root), parent(root).info.run_id
    client.delete_tag(run_id, "n_trials")
    assert found(root) == ["MLflow: the run of this sweep: tag n_trials is None, the ledger has '6'"]
    client.log_param(run_id, "n_trials", "6")
    assert found(root) == []
    client.set_tag(run_id, "n_trials", "7")
    assert len(found(root)) == 1, "the tag goes before it"
    client.set_tag(run_id, "n_trials", "6")


def finished_desk(folder: Path, asked: Any) -> Desk:
    """A finished sweep "t" under a root."""
    sweep = settings.sweep_folder("t", folder)
    stored.save(asked, sweep)
    desk = Desk(sweep, asked)
    desk.ledger.set_fact("id", "abc")
    desk.ledger.set_fact("created_at", 1.0)
    desk.ledger.set_fact(stored.ASKED, asked.model_dump_json())
    desk.ledger.set_fact("workload", asdict(WORKLOAD))
    desk.ledger.set_fact("data_counts", {"read": 3, "train": 1, "validation": 1, "test": 1})
    desk.finish(outcome)
    return desk


def desk_trials(folder: Path) -> list[Any]:
    with closing(Ledger(folder / "sweeps" / "t" / "ledger.db", read_only=True)) as ledger:
        return ledger.trials()
