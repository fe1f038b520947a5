"""From Python: a sweep opens wherever it lies, its tables are those of its files, settings have the names of flags."""

import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from orchestrator import open_sweep
from orchestrator.api import live
from orchestrator.api.html import html_of
from orchestrator.api.start import FIELDS, _sorted, run
from orchestrator.cli.options import FLAGS
from orchestrator.driver import plan
from orchestrator.report import outputs
from orchestrator.settings import SweepSettings, stored
from tests.support.sweeps import REPO, TPE, Desk, command, make
from trainables.values.errors import ConfigError

RECORDED = "mlflow_runs/recorded/smollm2-grid"


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """A sweep that has ended under tmp_path, with settings.json and the files that programs read; its desk."""
    monkeypatch.chdir(tmp_path)
    settings = make(TPE, name="mine", n_trials=4)
    desk = Desk(tmp_path / "mlflow_runs/sweeps/mine", settings)
    stored.save(settings, desk.folder)
    desk.finish()
    return desk


def test_the_tables_are_the_rows_of_the_sweeps_files(swept):
    sweep = open_sweep("mine")
    outputs.write_data(sweep.snapshot, swept.folder)
    rows = pq.read_table(swept.folder / "trials.parquet").to_pandas().set_index("number")
    pd.testing.assert_frame_equal(sweep.trials, rows, check_dtype=False)
    members = [trial.number for trial in sweep.snapshot.front.members]
    assert sweep.front.index.tolist() == members
    assert set(members) == set(rows.index[rows["on_pareto_front"]])


def test_what_is_asked_of_an_open_sweep_is_as_its_ledger_has_it_then(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    desk = Desk(tmp_path / "mlflow_runs/sweeps/mine", make(TPE, name="mine", n_trials=4))
    stored.save(desk.settings, desk.folder)
    sweep = open_sweep()
    assert sweep.trials.empty
    assert sweep.status.n_done == 0
    desk.do()
    assert len(sweep.trials) == sweep.status.n_done == 1


def test_a_sweep_opens_by_name_by_folder_and_as_the_newest(swept):
    assert open_sweep("mine") == open_sweep()
    assert open_sweep(swept.folder).trials.equals(open_sweep("mine").trials)


def test_a_recorded_sweep_opens_by_name_and_by_folder_and_is_left_as_it_was(monkeypatch):
    monkeypatch.chdir(REPO)
    before = {path: path.read_bytes() for path in Path(RECORDED).iterdir() if path.is_file()}
    for where in ("smollm2-grid", RECORDED, Path(RECORDED).resolve()):
        sweep = open_sweep(where)
        assert len(sweep.trials) == 48
        assert sweep.best(max_memory="2GiB").trial.config.rank == 2
    assert before == {path: path.read_bytes() for path in Path(RECORDED).iterdir() if path.is_file()}


def test_a_misspelt_name_is_answered_with_the_nearest_be_it_recorded(swept, monkeypatch):
    with pytest.raises(ConfigError, match="did you mean 'mine'"):
        open_sweep("mien")
    monkeypatch.chdir(REPO)
    with pytest.raises(ConfigError, match="did you mean 'smollm2-grid'"):
        open_sweep("smollm2-gird")
    with pytest.raises(ConfigError, match="no sweep 'nowhere'"):
        open_sweep("./nowhere")


def test_the_table_of_a_notebook_has_a_row_for_each_member_of_the_front_and_no_markup_from_outside(swept):
    snapshot = open_sweep("mine").snapshot
    text = html_of(snapshot, now=0.0)
    assert text.count("<tr>") == 1 + len(snapshot.front.members)
    assert f"ended, {len(snapshot.trials)} of {len(snapshot.trials)} trials" in text
    renamed = snapshot.settings.model_copy(update={"name": "<script>"})
    assert "<script>" not in html_of(type(snapshot)(settings=renamed), now=0.0)


def test_outside_a_notebook_nothing_is_drawn(swept, capsys):
    table = live.LiveTable(open_sweep("mine"))
    table.start()
    table.stop()
    assert capsys.readouterr() == ("", "")


def test_every_flag_of_run_is_a_setting_in_python():
    flags = {names[0].removeprefix("--").replace("-", "_"): field for field, names in FLAGS.items()}
    assert {flag: field for flag, field in flags.items() if flag != field} == FIELDS
    chosen, given = _sorted({"trials": 3, "steps": 5, "objective": "eval_loss_nats", "reuse": False, "seed": 1})
    assert chosen["trials"] == 3
    assert given == {"max_steps": 5, "objectives": ("eval_loss_nats",), "reuse": False, "seed": 1}


@pytest.mark.parametrize(("wrong", "right"), [("trails", "trials"), ("n_trials", "trials"), ("max_step", "steps")])
def test_a_misspelt_setting_is_answered_with_the_nearest(wrong, right):
    with pytest.raises(ConfigError, match=f"no setting '{wrong}'.*{right}"):
        _sorted({wrong: 3})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"trials": -1}, "^trials: "),
        ({"steps": 0}, "^steps: "),
        ({"trials": 3, "stop_when_flat": True}, "^stop_when_flat looks .* but trials is 3"),
    ],
)
def test_a_wrong_value_is_said_of_the_argument_that_it_was_given_as(wrong, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        run("demo", device="cpu", **wrong)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("space", [3, ["pareto"], 2.5, True])
def test_what_can_be_no_space_is_refused_by_what_can_be_one(space):
    with pytest.raises(ConfigError, match=r"^space: must be the name .*pareto.*\.yaml.*dict.*got "):
        run(space)


def test_a_space_is_found_by_the_path_of_its_file(tmp_path):
    with pytest.raises(ConfigError, match="no file"):
        run(tmp_path / "mine.yaml")


def test_what_python_says_comes_to_the_settings_of_the_same_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen, given = _sorted({"trials": 3, "steps": 5, "seed": 7, "base_model": None})
    settings = plan.choose("a", "cpu", chosen | {"space": None}, given)
    words = ("--trials", "3", "--steps", "5", "--seed", "7", "--name", "a", "--device", "cpu")
    planned = command("run", "--dry-run", "--json", *words, cwd=tmp_path).json["settings"]
    assert SweepSettings.model_validate(planned) == settings


def test_the_package_itself_imports_nothing(tmp_path):
    program = (
        sys.executable,
        "-c",
        "import sys, orchestrator; print([n for n in sys.modules if '.' in n and 'orch' in n])",
    )
    assert command(cwd=tmp_path, program=program).out == "[]\n"
