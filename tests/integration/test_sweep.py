"""Whole sweeps from the command line: real Ray on a CPU, real MLflow on a temporary SQLite."""

import fcntl
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

import pyarrow.parquet as pq
import pytest

from orchestrator.analysis import timeline
from orchestrator.analysis.finalists import to_evaluate
from orchestrator.analysis.front import front_of
from orchestrator.ledger import Ledger
from orchestrator.settings import stored
from orchestrator.tracking.store import EXPERIMENT, store_uri
from tests.support.sweeps import CANARIES, CANARY, Finished, command, start
from trainables.values.config import FINAL_STATES
from trainables.values.errors import SweepError

SMALL = """
method: grid
parameters:
  rank: {values: [1, 4]}
  precision: {values: [16bit, nf4]}
fixed: {alpha: 8, learning_rate: 1.0e-3, batch_size: 4, max_length_tokens: 64, max_steps: 8}
early_terminate: {type: none}
"""


PATIENCE_SECONDS = 1800
"""That anything may take on a busy machine; on an idle one it takes seconds."""


def begin(cwd: Path, *arguments: str, **variables: str):
    (cwd / "small.yaml").write_text(SMALL)
    return start("run", "--space", "small.yaml", "--name", "a", *arguments, cwd=cwd, **variables)


def trials(cwd: Path):
    ledger = Ledger(cwd / "mlflow_runs" / "sweeps" / "a" / "ledger.db")
    try:
        return ledger.trials()
    finally:
        ledger.close()


def searched(cwd: Path):
    """Trials of the search and their baselines, without what the finalists needed afterwards."""
    return [trial for trial in trials(cwd) if trial.origin in ("search", "baseline")]


def wait_for_a_completed_trial(cwd: Path, process: subprocess.Popen) -> None:
    """Of a sweep that is still at work."""
    path = cwd / "mlflow_runs" / "sweeps" / "a" / "ledger.db"
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[1]
        with suppress(SweepError, sqlite3.Error):  # its ledger is being made
            if path.exists() and any(trial.state == "completed" for trial in trials(cwd)):
                return
        time.sleep(0.2)
    raise AssertionError("no trial completed")


def assert_resumed_whole(cwd: Path) -> None:
    """`resume` completes all four trials, and runs none again that had completed."""
    before = {t.key: t for t in searched(cwd) if t.state == "completed"}
    finished = command("resume", "a", cwd=cwd, timeout=PATIENCE_SECONDS)
    assert finished.code == 0, finished.err
    after = {t.key: t for t in searched(cwd)}
    assert len(after) == 4
    assert {t.state for t in after.values()} == {"completed"}
    assert all(after[key].ended_at == trial.ended_at for key, trial in before.items())


@pytest.fixture(scope="module")
def ray_logs() -> Iterator[str]:
    """A folder that Ray writes its logs in; its sockets want a short path."""
    folder = mkdtemp(prefix="ray", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def swept(tmp_path_factory, ray_logs) -> tuple[Path, Finished]:
    """One finished sweep over the demo: a pair at rank 1, and a 16-bit trial of rank 4. Its environment has secrets,
    its folder a file of the user's that is called like a module of the standard library."""
    cwd = tmp_path_factory.mktemp("sweep")
    (cwd / "random.py").write_text("raise SystemExit('not the library')")
    (cwd / "small.yaml").write_text(SMALL)
    asked = ("run", "--space", "small.yaml", "--name", "a", "--trials", "3", "--json")
    variables = {**CANARIES, "RAY_TMPDIR": ray_logs, "HF_HUB_OFFLINE": "1"}
    finished = command(*asked, cwd=cwd, timeout=600, **variables)
    assert finished.code == 0, finished.err
    return cwd, finished


@pytest.fixture(scope="module")
def mlflow(swept):
    """An MLflow client on the sweep's store, the parent run and its children by trial key."""
    from mlflow import MlflowClient

    client = MlflowClient(store_uri(swept[0] / "mlflow_runs"))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len({run.data.tags["trial_key"] for run in children}) == len(children)
    return client, parent, {run.data.tags["trial_key"]: run for run in children}


def test_standard_output_is_one_json_object(swept):
    whole = swept[1].json
    front = ("objectives", "noise", "reference_point", "hypervolume", "members", "nearly")
    ends = ("verdicts", "search_ended", "empty_because", "failed_evaluations", "error", "exit_code")
    assert tuple(whole) == ("schema_version", "name", "mlflow_run", *front, *ends)
    assert (whole["error"], whole["exit_code"]) == (None, 0)
    assert whole["search_ended"]["why"] == "trials"
    assert whole["empty_because"] is None
    for verdict in whole["verdicts"]:
        assert verdict["sentence"].startswith(f"{verdict['answer']}: ")
        assert verdict["lost"]["n_groups"] >= 30


def test_trials_of_the_search_are_measured_at_each_rung_and_seed_replicates_at_their_end_alone(swept):
    measured = {(t.is_of_search, tuple(m.step for m in t.history)) for t in trials(swept[0])}
    assert measured == {(True, (1, 2, 4, 8)), (False, (8,))}


def test_the_ledger_says_what_driver_and_workers_did_when(swept):
    ledger = Ledger(swept[0] / "mlflow_runs" / "sweeps" / "a" / "ledger.db", read_only=True)
    by_process = {one.process: one.seconds() for one in timeline.by_process(ledger.spans())}
    ledger.close()
    assert by_process.pop("driver").keys() >= {"inputs", "tasks", "writing figures", "writing MLflow"}
    assert by_process, "no worker"
    assert all(seconds.keys() >= {"imports", "base"} for seconds in by_process.values())
    assert {phase for seconds in by_process.values() for phase in seconds} >= {"training", "test evaluation"}
    shown = command("status", "a", "--timeline", cwd=swept[0])
    assert all(name in shown.out for name in ("driver", *by_process))


def test_every_trial_completed_and_every_4bit_one_has_its_similarity(swept):
    found = searched(swept[0])
    assert sorted((t.config.precision, t.config.rank) for t in found) == [
        ("16bit", 1),
        ("16bit", 4),
        ("nf4", 1),
    ]
    assert {t.state for t in found} == {"completed"}
    for trial in found:
        assert [m.step for m in trial.history] == [1, 2, 4, 8]
        assert (trial.similarity is not None) == (trial.config.precision == "nf4")
        assert trial.environment["compute_dtype"] == "float32"
        if trial.similarity:
            cosine, match = trial.similarity.quantized.embedding_cosine, trial.similarity.quantized.token_match_rate
            assert 0.5 < cosine.low <= cosine.value <= cosine.high <= 1
            assert 0 <= match.low <= match.value <= match.high <= 1
            assert trial.similarity.untuned.kl_nats.value > 0


def test_every_finalist_is_evaluated_and_a_4_bit_one_beside_two_other_seeds_of_its_baseline(swept):
    found = trials(swept[0])
    asked_for = stored.load(swept[0] / "mlflow_runs" / "sweeps" / "a")
    evaluated = to_evaluate(found, asked_for)
    assert any(trial.config.precision == "nf4" for trial in evaluated)
    for trial in evaluated:
        assert 0 < trial.test_evaluation.eval_loss_nats < trial.test_evaluation.untuned_loss_nats
        assert len(trial.test_evaluation.row_nats) == len(trial.test_evaluation.row_tokens) == 256
        if trial.config.precision == "nf4":
            assert len(trial.test_evaluation.comparison.replicates) == 2
            assert trial.test_evaluation.comparison.quantization_to_seed_ratio.low > 0
            assert {share.by for share in trial.test_evaluation.breakdown} >= {"token frequency", "kind of task"}
            assert {shift.about for shift in trial.test_evaluation.bias} >= {"gender", "age"}
    assert {t.origin for t in found} <= {"search", "baseline", "baseline replicate"}


def test_the_front_is_the_same_in_ledger_json_parquet_and_mlflow(swept, mlflow):
    folder = swept[0] / "mlflow_runs" / "sweeps" / "a"
    keys = front_of(trials(swept[0]), stored.load(folder)).keys
    written = json.loads((folder / "front.json").read_text())
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    tagged = {key for key, run in mlflow[2].items() if run.data.tags["on_pareto_front"] == "true"}
    assert keys
    assert {member["key"] for member in written["members"]} == keys
    assert {member["key"] for member in swept[1].json["members"]} == keys
    assert {row["key"] for row in rows if row["on_pareto_front"]} == keys
    assert tagged == keys
    assert len(rows) == len(trials(swept[0]))


def test_the_parent_run_holds_what_the_sweep_came_to(mlflow):
    client, parent, _ = mlflow
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    figures = {file.path for file in client.list_artifacts(parent.info.run_id, "figures")}
    assert {"front.json", "trials.parquet", "settings.json", "environment.json"} <= names
    points = ("rank_memory", "loss_memory", "parallel_coordinates")
    drawn = (*points, "hypervolume", "memory_breakdown", "similarity", "timeline", "front")
    assert figures == {f"figures/{n}.png" for n in drawn} | {"figures/left_out.txt"}
    assert {"figures.html", "report.html", "report.md"} <= names
    assert parent.info.status == "FINISHED"
    assert "Pareto front" in parent.data.tags["mlflow.note.content"]
    assert parent.data.tags["n_trials"] == "3"


def test_the_figures_are_self_contained_and_hold_every_completed_trial(swept):
    folder = swept[0] / "mlflow_runs" / "sweeps" / "a"
    text = (folder / "figures.html").read_text()
    assert not re.search(r"<(script|link)[^>]+(src|href)=[\"']?https?:", text)
    assert text.count("alpha 8") >= 4 * 3  # in 4 figures each point says what it is
    pictures = list((folder / "figures").glob("*.png"))
    assert pictures
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_each_child_run_holds_its_trials_settings_rungs_and_tags(swept, mlflow):
    client, _, children = mlflow
    found = {trial.key: trial for trial in trials(swept[0])}
    assert children.keys() == found.keys()
    for key, run in children.items():
        trial = found[key]
        tags = run.data.tags
        assert (tags["state"], tags["precision"], tags["rank"]) == (
            trial.state,
            trial.config.precision,
            str(trial.config.rank),
        )
        asked = trial.config.to_dict()
        assert run.data.params == {n: "+".join(v) if n == "targets" else str(v) for n, v in asked.items()}
        history = client.get_metric_history(run.info.run_id, "eval_loss_nats")
        assert [(m.step, m.value) for m in history] == [(m.step, m.eval_loss_nats) for m in trial.history]
        assert run.data.metrics["rank"] == trial.config.rank
        assert run.info.status == "FINISHED"


@pytest.mark.parametrize("precision", ["nf4", "16bit"])
def test_the_adapter_in_mlflow_gives_the_recorded_loss_through_peft(swept, mlflow, tmp_path, precision):
    from peft import PeftModel

    from trainables.data import tokens
    from trainables.evaluation import held_out
    from trainables.models import base_model

    client, _, children = mlflow
    trial = next(t for t in trials(swept[0]) if t.config.precision == precision)
    folder = client.download_artifacts(children[trial.key].info.run_id, "adapter", str(tmp_path))
    ledger = Ledger(swept[0] / "mlflow_runs" / "sweeps" / "a" / "ledger.db")
    workload = ledger.workload()
    ledger.close()
    model = PeftModel.from_pretrained(base_model.load(workload, precision, "cpu"), folder)
    loss = held_out.eval_loss(model, tokens.load(workload.data_folder)["validation"])
    assert loss == pytest.approx(trial.history[-1].eval_loss_nats, abs=1e-3)


def test_syncing_again_changes_nothing(swept, mlflow):
    client, parent, children = mlflow
    run = next(iter(children.values()))
    before = client.get_metric_history(run.info.run_id, "eval_loss_nats")
    finished = command("sync", "a", cwd=swept[0])
    assert finished.code == 0, finished.err
    assert parent.info.run_id in finished.out
    assert len(client.search_runs([parent.info.experiment_id])) == 1 + len(children)
    assert client.get_metric_history(run.info.run_id, "eval_loss_nats") == before


def test_rows_over_the_limit_are_counted_and_said(swept):
    from trainables.data import tokens

    ledger = Ledger(swept[0] / "mlflow_runs" / "sweeps" / "a" / "ledger.db")
    counts, folder = ledger.fact("data_counts"), ledger.workload().data_folder
    ledger.close()
    longer = sum(len(row.input_ids) > 64 for row in tokens.load(folder)["train"])
    assert counts["longer than 64 tokens"] == longer
    assert 0 < longer < 1000
    assert f"{longer} longer than 64 tokens" in swept[1].err


def test_no_secret_of_the_environment_stands_in_logs_ledger_mlflow_or_artifacts(swept, ray_logs):
    cwd, finished = swept
    assert CANARY not in finished.out + finished.err
    files = [path for place in (cwd, Path(ray_logs)) for path in place.rglob("*") if path.is_file()]
    assert {"mlflow.db", "ledger.db", "raylet.out", "report.html"} <= {path.name for path in files}
    assert [str(path) for path in files if CANARY.encode() in path.read_bytes()] == []


def test_status_counts_the_trials(swept):
    status = command("status", "a", "--json", cwd=swept[0]).json
    n = len(trials(swept[0]))
    assert (status["n_done"], status["n_expected"], status["counts"]) == (n, n, {"completed": n})
    assert status["phase"] == "ended"


def test_a_name_that_is_taken_is_refused(swept):
    finished = command("run", "--name", "a", "--trials", "1", cwd=swept[0])
    assert finished.code == 2
    assert "resume a" in finished.err


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_stops_soon_and_resume_loses_and_repeats_nothing(how, tmp_path):
    process = begin(tmp_path, "--steps", "40")
    wait_for_a_completed_trial(tmp_path, process)
    rival = command("run", "--name", "a", "--space", "small.yaml", cwd=tmp_path)
    assert rival.code == 2
    assert f"process {process.pid}" in rival.err
    (os.kill if how == signal.SIGTERM else os.killpg)(process.pid, how)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, err
    assert "SIGTERM received" not in err
    before = {t.key: t for t in searched(tmp_path)}
    assert "running" not in {t.state for t in before.values()}
    finished = command("resume", "a", cwd=tmp_path, timeout=PATIENCE_SECONDS)
    assert finished.code == 0, finished.err
    after = {t.key: t for t in searched(tmp_path)}
    assert len(after) == 4
    assert {t.state for t in after.values()} <= FINAL_STATES
    for key, trial in before.items():
        if trial.state == "completed":
            assert (after[key].started_at, after[key].ended_at) == (trial.started_at, trial.ended_at)


@pytest.mark.slow
def test_a_second_interruption_ends_at_once_and_resume_loses_and_repeats_nothing(tmp_path):
    """MLflow, for which the first would wait, is held up meanwhile."""
    root = tmp_path / "mlflow_runs"
    root.mkdir()
    with (root / ".mlflow.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = begin(tmp_path, "--steps", "40")
        wait_for_a_completed_trial(tmp_path, process)
        os.killpg(process.pid, signal.SIGINT)
        said = next((line for line in process.stderr if "once more kills" in line), "")
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert said.startswith("stopping")
    assert process.returncode == 130, err
    assert "MLflow lacks" not in err, "it went on after the second"
    assert re.search(r"^interrupted; .*go on with: .* resume \w+$", err, re.M)
    assert_resumed_whole(tmp_path)


@pytest.mark.slow
def test_a_killed_driver_is_resumed_and_loses_and_repeats_nothing(tmp_path):
    process = begin(tmp_path, "--steps", "40")
    wait_for_a_completed_trial(tmp_path, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert_resumed_whole(tmp_path)


@pytest.mark.slow
def test_a_sweep_runs_on_a_model_and_rows_from_the_hub(tmp_path):
    import pandas

    from tests.support.hub_server import hub_server
    from trainables import demo

    rows = tmp_path / "rows" / "data"
    rows.mkdir(parents=True)
    pandas.DataFrame(json.loads(demo.ROWS_FILE.read_text())).to_parquet(rows / "train-00000-of-00001.parquet")
    variables = {"HF_HOME": str(tmp_path / "hf"), "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
    arguments = ("--base-model", "tiny/gpt2", "--data", "tiny/alpaca", "--trials", "1", "--steps", "2", "--json")
    with hub_server(models={"tiny/gpt2": demo.FOLDER}, datasets={"tiny/alpaca": rows.parent}) as endpoint:
        process = begin(tmp_path, *arguments, HF_ENDPOINT=endpoint, **variables)
        out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert json.loads(out)["members"]
    (trial, *_) = trials(tmp_path)
    assert trial.environment["weights"] == "pretrained"
