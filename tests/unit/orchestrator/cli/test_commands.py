"""Commands about sweeps as things that are there: list, stop, delete, init, a newest one, more trials."""

import fcntl
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest

import search_spaces
from orchestrator.analysis.budgets import FINISHED
from orchestrator.analysis.finalists import to_evaluate
from orchestrator.analysis.moment import BEGAN_AT, WRITING
from orchestrator.analysis.overview import overviews
from orchestrator.cli import options
from orchestrator.cli.commands.stop import stop
from orchestrator.cli.lines import folded
from orchestrator.cli.template import SPACE
from orchestrator.driver import duration, extend
from orchestrator.driver.ready import SweepDevice
from orchestrator.ledger import Ledger
from orchestrator.ledger.ownership import owned, owner_of
from orchestrator.settings import stored
from orchestrator.tracking import view
from orchestrator.tracking.client import open_client
from orchestrator.tracking.publishing import publish
from orchestrator.tracking.store import store_uri
from orchestrator.verify.ledger import of_ledger, read
from tests.support.in_process import called
from tests.support.stores import place_store
from tests.support.sweeps import GRID, REPO, TPE, WORKLOAD, Desk, environment, make, start
from trainables.cost.gpus import gpu_named
from trainables.cost.predicted_time import Speed
from trainables.values.config import TrialConfig
from trainables.values.errors import ConfigError, SweepError

SPEED = Speed(products_flops=10e12, memory_bytes=1e12)
OWNS = """
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from time import sleep
from orchestrator.ledger.ownership import owned
try:
    with owned(Path(sys.argv[1])):
        print("owned", flush=True)
        sleep(60)
finally:
    print("over")
"""


def desk_of(root: Path, name: str, **values) -> Desk:
    desk = Desk(root / "mlflow_runs/sweeps" / name, make(**{"space": TPE, "name": name, "n_trials": 3, **values}))
    stored.save(desk.settings, desk.folder)
    return desk


@pytest.fixture
def owner(tmp_path):
    """A process that holds the folder of sweep "a"."""
    desk_of(tmp_path, "a").do()
    folder = tmp_path / "mlflow_runs/sweeps/a"
    process = start(str(folder), cwd=REPO, program=(sys.executable, "-c", OWNS))
    assert process.stdout.readline() == "owned\n"
    yield process
    process.kill()
    process.communicate()


# --- run


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_run_under_the_name_of_a_sweep_that_runs_names_its_process(owner, flags, tmp_path):
    refused = called("run", "--name", "a", *flags, cwd=tmp_path)
    assert refused.code == 2
    assert f"sweep 'a' is being run by process {owner.pid}; choose another NAME, or see" in refused.err
    owner.kill()
    owner.wait()
    assert "sweep 'a' exists" in called("run", "--name", "a", *flags, cwd=tmp_path).err


# --- status


def test_workers_start_only_for_as_long_as_a_process_runs_the_sweep(owner, tmp_path):
    with closing(Ledger(tmp_path / "mlflow_runs/sweeps/a/ledger.db")) as ledger:
        ledger.set_fact(BEGAN_AT, time.time())  # gone on with, after its first trial
    found = called("status", "a", "--json", cwd=tmp_path).json
    assert (found["phase"], found["starting_seconds"] >= 0) == ("starting workers and first trials", True)
    owner.kill()
    owner.wait()
    found = called("status", "a", "--json", cwd=tmp_path).json
    assert (found["phase"], found["starting_seconds"]) == ("training", None)


def test_time_is_left_only_for_as_long_as_a_process_runs_the_sweep(owner, tmp_path):
    assert re.search("about .* left", called("status", "a", cwd=tmp_path).out)
    assert called("status", "a", "--json", cwd=tmp_path).json["seconds_left"] > 0
    owner.kill()
    owner.wait()
    assert "left" not in called("status", "a", cwd=tmp_path).out
    assert called("status", "a", "--json", cwd=tmp_path).json["seconds_left"] is None


def test_a_sweep_that_no_process_runs_any_more_is_said_to_be_stopped_with_what_goes_on(owner, tmp_path):
    running = called("status", "a", cwd=tmp_path, COLUMNS="80").out
    assert "stopped" not in running
    assert called("status", "a", "--json", cwd=tmp_path).json["state"] == "running"
    owner.kill()
    owner.wait()
    text = called("status", "a", cwd=tmp_path, COLUMNS="80").out
    assert "a: stopped while training" in text
    assert "resume a goes on" in " ".join(text.split())
    assert called("status", "a", "--json", cwd=tmp_path).json["state"] == "stopped"
    with closing(Ledger(tmp_path / "mlflow_runs/sweeps/a/ledger.db")) as ledger:
        ledger.set_fact(WRITING, ["writing figures", time.time() - 100])  # killed meanwhile
        text = " ".join(called("status", "a", cwd=tmp_path).out.split())
        assert "a: stopped while writing figures" in text
        assert "resume a goes on" in text
        ledger.set_fact(FINISHED, True)
        text = " ".join(called("status", "a", cwd=tmp_path).out.split())
        assert "a: stopped while writing figures" in text
        assert "sync a writes what is missing" in text
        ledger.set_fact(WRITING, None)
    text = called("status", "a", cwd=tmp_path).out
    assert "a: ended" in text
    assert "resume" not in text
    assert called("status", "a", "--json", cwd=tmp_path).json["state"] == "finished"


# --- list


def test_the_list_says_of_each_sweep_whether_it_runs_has_ended_or_can_be_gone_on_with(tmp_path):
    desk_of(tmp_path, "done").finish()
    desk_of(tmp_path, "cut").do()
    running = desk_of(tmp_path, "busy")
    broken = desk_of(tmp_path, "broken")
    broken.crash()
    (broken.folder / "settings.json").write_text("{")
    with owned(running.folder):
        found = {one.name: one for one in overviews(tmp_path / "mlflow_runs")}
        text = called("list", cwd=tmp_path, COLUMNS="80").out
    states = {name: one.state for name, one in found.items()}
    assert states == {"done": "finished", "cut": "stopped", "busy": "running", "broken": "unreadable"}
    assert found["done"].n_done == found["done"].n_expected > found["cut"].n_done == 1
    losses = [t.history[-1].eval_loss_nats for t in Ledger(tmp_path / "mlflow_runs/sweeps/done/ledger.db").trials()]
    assert found["done"].eval_loss_nats >= min(losses)
    assert all(word in text for word in ("done", "finished", "stopped", "running", "broken: ", "settings.json"))
    assert max(map(len, text.splitlines()[:6])) <= 80


def test_a_name_that_run_gave_is_listed_on_one_line_of_80_columns(tmp_path):
    name = f"diagnostic-{time.strftime('%Y%m%d-%H%M%S')}"
    desk_of(tmp_path, name).finish()
    lines = called("list", cwd=tmp_path, COLUMNS="80").out.splitlines()
    assert len(lines) == 4, "two of headings, a rule, the sweep"
    assert re.fullmatch(rf"{name} +finished .* \d\d:\d\d *", lines[-1])


def test_the_list_of_nothing_says_how_to_begin(tmp_path):
    assert "run one: " in called("list", cwd=tmp_path).out


# --- answers, best


def test_answers_of_no_sweeps_and_its_help_show_how_it_is_called(tmp_path):
    refused = called("answers", cwd=tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("error: NAMES: say which sweeps")
    for text in (refused.err, called("answers", "--help", cwd=tmp_path).out):
        assert "answers smollm2-grid smollm2-rates" in text


def test_a_dry_run_says_which_of_its_trials_do_not_fit_the_gpu(tmp_path):
    space = (REPO / "search_spaces/pareto.yaml").read_text()
    (tmp_path / "large.yaml").write_text(space.replace("batch_size: 4", "batch_size: 80"))
    words, large = ("run", "--dry-run", "--gpu", "T4"), ("--space", "large.yaml")
    planned = called(*words, *large, "--json", cwd=tmp_path).json
    usable = gpu_named("T4").usable_mib
    n_over = sum(peak > usable for peak in planned["predicted_peak_mib"])
    assert planned["fits"] == [peak <= usable for peak in planned["predicted_peak_mib"]]
    assert 0 < n_over < 5
    said = called(*words, *large, cwd=tmp_path).out
    most = f"up to {max(planned['predicted_peak_mib']):,.0f} MiB, where it has {usable:,.0f} MiB for tensors"
    assert f"{n_over} of these 5 do not fit one T4: {most}" in said
    assert "do not fit" not in called(*words, cwd=tmp_path).out
    assert called("run", "--dry-run", "--device", "cuda", "--json", cwd=tmp_path).json["fits"] == [None] * 5


@pytest.mark.parametrize("words", [("--max-memory", "100GiB"), ("--knee", "--max-memory", "100GiB"), ()])
def test_the_first_sentence_of_best_is_two_lines_at_most_and_how_sure_it_is_stands_below(words):
    said = called("best", "smollm2-grid", *words, cwd=REPO).out.splitlines()
    assert len(folded(said[0], 80).splitlines()) <= 2
    assert said[0].startswith("trial ")
    assert re.search("cannot be told apart|it is the only trial", said[1])


# --- recorded sweeps


@pytest.fixture
def with_recorded(tmp_path):
    """A folder with a sweep of its own, "mine", and an unfinished one, "kept", among the recorded ones."""
    for name in ("kept", "mine"):
        desk = desk_of(tmp_path, name)
        desk.ledger.set_fact("workload", asdict(WORKLOAD))
        desk.do()
        desk.crash()
    recorded = tmp_path / "mlflow_runs/recorded"
    recorded.mkdir()
    (tmp_path / "mlflow_runs/sweeps/kept").rename(recorded / "kept")
    return tmp_path


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_list_has_recorded_sweeps_under_ones_own_and_calls_them_so(with_recorded):
    found = called("list", "--json", cwd=with_recorded).json["sweeps"]
    assert [(one["name"], one["state"]) for one in found] == [("mine", "stopped"), ("kept", "recorded")]
    shutil.rmtree(with_recorded / "mlflow_runs/sweeps")
    text = called("list", cwd=with_recorded).out
    assert "run one: " in text
    assert "kept" in text


def test_the_report_of_a_recorded_sweep_lies_beside_and_leaves_its_folder_as_it_was(with_recorded):
    folder = with_recorded / "mlflow_runs/recorded/kept"
    before = files_of(folder)
    made = called("report", "kept", cwd=with_recorded)
    assert (made.code, files_of(folder)) == (0, before)
    [path] = [line for line in made.err.splitlines() if line.startswith("the whole report: ")]
    assert (with_recorded / path.removeprefix("the whole report: ")).read_text().startswith("<!doctype html>")


def test_the_report_of_a_recorded_sweep_names_no_command_that_refuses_it(with_recorded):
    refusing = {"resume", "export", "verify", "sync", "delete", "stop"}
    named = {}
    for name, folder in {"kept": "cache/reports/kept", "mine": "sweeps/mine"}.items():
        assert called("report", name, cwd=with_recorded).code == 0
        texts = [(with_recorded / "mlflow_runs" / folder / f"report.{kind}").read_text() for kind in ("md", "html")]
        named[name] = [set(re.findall(r"qlora-sweep (\w+)", text)) for text in texts]
    assert named["kept"] == [{"best"}, {"best"}]
    assert all({"best", "resume", "export"} <= found for found in named["mine"])
    assert not refusing.intersection(*named["kept"])


def test_a_recorded_sweep_is_read_alone_and_nobody_is_told_to_go_on_with_it(with_recorded):
    for words in (("report", "kept"), ("status", "kept")):
        assert "resume" not in called(*words, cwd=with_recorded).out
    assert "kept: recorded while " in called("status", "kept", cwd=with_recorded).out
    assert "mine: stopped while " in called("status", "mine", cwd=with_recorded).out
    assert "its adapter: " not in called("best", "kept", cwd=with_recorded).out
    assert "its adapter: " in called("best", "mine", cwd=with_recorded).out
    assert "resume mine" in called("status", "mine", cwd=with_recorded).out
    assert "resume mine" in called("report", "mine", cwd=with_recorded).out
    for words in (("resume", "kept"), ("verify", "kept"), ("stop", "kept"), ("delete", "kept", "--yes")):
        refused = called(*words, cwd=with_recorded)
        assert refused.code == 2
        assert "NAME: sweep 'kept' is a recorded one, which can only be read: status, best, report" in refused.err


def test_a_wrong_name_where_there_is_no_sweep_says_how_to_begin(tmp_path):
    assert "no sweep 'a', as there is none here yet; run one: " in called("status", "a", cwd=tmp_path).err


@pytest.mark.parametrize(
    "words", ["status", "resume", "best", "report", "verify", "delete", "export", "card", "answers", "stop", "sync"]
)
def test_a_name_that_no_sweep_can_have_is_refused_as_the_argument_that_it_is(words, tmp_path):
    refused = called(words, "../x", *(["dest"] if words == "export" else []), cwd=tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("error: NAME: must be 1 to 64 letters"), refused.err
    assert refused.err.endswith("got '../x'\n")


# --- stop


def test_stop_ends_the_process_that_runs_the_sweep_and_waits_for_it(owner, tmp_path):
    folder = tmp_path / "mlflow_runs/sweeps/a"
    assert owner_of(folder) == owner.pid
    finished = called("stop", "a", cwd=tmp_path)
    assert finished.code == 0, finished.err
    assert "resume a" in finished.out
    assert owner.wait(10) == -signal.SIGTERM
    assert owner_of(folder) is None


def test_what_does_not_run_cannot_be_stopped(tmp_path):
    desk_of(tmp_path, "a").do()
    finished = called("stop", cwd=tmp_path)
    assert finished.code == 2
    assert "sweep 'a' does not run" in finished.err


def test_stop_ends_nothing_while_the_process_that_runs_a_sweep_has_not_said_its_number(tmp_path, monkeypatch):
    desk = desk_of(tmp_path, "a")
    desk.do()
    monkeypatch.chdir(tmp_path)
    with owned(desk.folder):
        (desk.folder / "owner").write_text("")
        monkeypatch.setattr("os.kill", lambda *_: pytest.fail("a signal to this process's own group"))
        with pytest.raises(SweepError, match="has not said its number"):
            stop("a")


# --- delete


def test_delete_takes_folder_and_runs_of_the_one_sweep_and_asks_first(tmp_path):
    place_store(tmp_path / "mlflow_runs")
    for name in ("a", "b"):
        desk = desk_of(tmp_path, name)
        desk.ledger.set_fact("id", name)
        desk.ledger.set_fact("created_at", 0.0)
        desk.ledger.set_fact("workload", asdict(WORKLOAD))
        desk.finish()
        publish(desk.settings, tmp_path / "mlflow_runs", interrupted=False)
    unasked = called("delete", "a", cwd=tmp_path)
    assert (unasked.code, "--yes" in unasked.err) == (2, True)
    assert (tmp_path / "mlflow_runs/sweeps/a/ledger.db").is_file()
    done = called("delete", "a", "--yes", cwd=tmp_path)
    assert done.code == 0, done.err
    assert [path.name for path in (tmp_path / "mlflow_runs/sweeps").iterdir()] == ["b"]
    client, experiment_id = open_client(store_uri(tmp_path / "mlflow_runs"), tmp_path / "mlflow_runs")
    runs = client.search_runs([experiment_id])
    n_trials = len(desk.ledger.trials())
    assert len(runs) == n_trials + 1, "those of the other sweep"
    assert f"and {n_trials + 1} runs in MLflow" in done.out
    views = [tag for tag in client.get_experiment(experiment_id).tags if tag.startswith(view.TAG)]
    assert views == [f"{view.TAG}b"], "that of the other sweep"


def test_who_deletes_a_sweep_that_is_gone_is_offered_no_other(tmp_path):
    desk_of(tmp_path, "first")
    said = called("delete", "firs", "--yes", cwd=tmp_path)
    assert said.code == 2
    assert "no sweep 'firs'; those that are here: " in said.err
    assert said.err.endswith(" list\n")
    assert "'first'" not in said.err
    assert "did you mean 'first'" in called("status", "firs", cwd=tmp_path).err


@pytest.mark.parametrize("typed", [b"\x03", b"\x04", b"n\n", b"\n"], ids=["ctrl-c", "ctrl-d", "n", "enter"])
def test_who_does_not_say_yes_deletes_nothing_and_is_told_so_in_a_line(typed, tmp_path):
    desk_of(tmp_path, "a")
    ours, theirs = pty.openpty()

    def take_the_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    try:
        asked = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", "delete", "a"],
            cwd=tmp_path,
            env=environment(),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=take_the_terminal,
        )
        assert asked.stderr.read(1), "it has asked"
        os.write(ours, typed)
        _, said = asked.communicate(timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert asked.returncode == 1
    assert said.splitlines()[-1] == "nothing was deleted"
    assert "Traceback" not in said
    assert (tmp_path / "mlflow_runs/sweeps/a/ledger.db").is_file()


def test_a_running_sweep_is_not_deleted(owner, tmp_path):
    refused = called("delete", "a", "--yes", cwd=tmp_path)
    assert refused.code == 2
    assert f"process {owner.pid} runs sweep 'a'" in refused.err
    assert (tmp_path / "mlflow_runs/sweeps/a/ledger.db").is_file()


# --- init


def test_what_init_writes_is_a_space_with_every_setting_and_rows_that_run_as_they_are(tmp_path):
    assert called("init", "mine", cwd=tmp_path).code == 0
    planned = called("run", "--dry-run", "--space", "mine/space.yaml", "--data", "mine/rows.jsonl", cwd=tmp_path)
    assert planned.code == 0, planned.err
    space = search_spaces.load(str(tmp_path / "mine/space.yaml"))
    named = {*space.parameters, *space.fixed}
    assert [name for name in TrialConfig.__dataclass_fields__ if name not in SPACE] == []
    defaults = {name: field.default for name, field in TrialConfig.__dataclass_fields__.items()}
    for line in SPACE.splitlines():
        name, _, rest = line.strip().removeprefix("# ").partition(": ")
        if line.strip().startswith("# ") and name in defaults and name not in named:
            assert str(defaults[name] if defaults[name] != () else []).lower() == rest.partition("  #")[0], line
    words = shlex.split(called("init", "a b", "--json", cwd=tmp_path).json["dry_run"])
    assert words[-5:] == ["--space", "a b/space.yaml", "--data", "a b/rows.jsonl", "--dry-run"]
    again = called("init", "mine", cwd=tmp_path)
    assert (again.code, "space.yaml exists" in again.err) == (2, True)


@pytest.mark.parametrize(
    ("only", "file", "flag"), [("space", "space.yaml", "--space"), ("rows", "rows.jsonl", "--data")]
)
def test_init_writes_the_space_or_the_rows_alone_beside_what_is_there(only, file, flag, tmp_path):
    both = called("init", "both", cwd=tmp_path)
    made = called("init", "mine", "--only", only, cwd=tmp_path)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [file]
    assert (tmp_path / "mine" / file).read_bytes() == (tmp_path / "both" / file).read_bytes()
    assert made.out.splitlines()[-1].endswith(f" run {flag} mine/{file} --dry-run")
    assert len(made.out.splitlines()) == len(both.out.splitlines()) - 1
    (tmp_path / "mine" / file).unlink()
    printed = called("init", "mine", "--only", only, "--json", cwd=tmp_path).json
    assert sorted((printed["space"], printed["data"]), key=bool) == [None, f"mine/{file}"]
    assert called("init", "mine", "--only", only, cwd=tmp_path).code == 2
    other = {"space": "rows", "rows": "space"}[only]
    assert called("init", "mine", "--only", other, cwd=tmp_path).code == 0
    assert "--only: no file 'rowz'; did you mean 'rows'?" in called("init", "a", "--only", "rowz", cwd=tmp_path).err


# --- the newest


@pytest.mark.parametrize("words", [("verify",), ("status",), ("best",), ("report",)])
def test_without_a_name_the_newest_sweep_is_meant(words, tmp_path):
    desk_of(tmp_path, "old").do()
    desk_of(tmp_path, "new").finish()
    newest = called(*words, cwd=tmp_path)
    assert newest.out == called(*words, "new", cwd=tmp_path).out
    assert newest.out


def test_export_to_one_place_is_of_the_newest_sweep(tmp_path):
    refused = called("export", "dest", cwd=tmp_path)
    assert "there is no sweep under" in refused.err
    desk_of(tmp_path, "new").do()
    refused = called("export", "dest", "--trial", "77", cwd=tmp_path)
    assert "TRIAL: no trial '77'" in refused.err, refused.err


def test_export_of_a_sweep_to_nowhere_writes_no_folder_of_its_name(tmp_path):
    desk_of(tmp_path, "new").do()
    refused = called("export", "new", cwd=tmp_path)
    assert refused.code == 2
    assert refused.err.startswith("error: DEST: 'new' is a sweep; say where its adapter goes: ")
    assert refused.err.endswith(" export new FOLDER\n")
    assert not (tmp_path / "new").exists()


def test_export_to_nowhere_says_what_is_missing(tmp_path):
    refused = called("export", cwd=tmp_path)
    said = "error: DEST: say which folder to write the adapter to, one that is new or empty\n"
    assert (refused.code, refused.err) == (2, said)


def test_a_shell_completes_names_of_sweeps(tmp_path, monkeypatch):
    for name in ("ab", "ac", "b"):
        desk_of(tmp_path, name).crash()
    monkeypatch.chdir(tmp_path)
    assert options.sweep_names("a") == ["ab", "ac"]
    assert options.sweep_names("*") == []
    variables = {"_QLORA_SWEEP_COMPLETE": "complete_bash", "COMP_WORDS": "qlora-sweep status a", "COMP_CWORD": "2"}
    words = [
        sys.executable,
        "-c",
        "import sys; sys.argv = ['qlora-sweep']; import orchestrator.cli.main as m; m.main()",
    ]
    made = subprocess.run(
        words, cwd=tmp_path, env={"PYTHONPATH": str(REPO), **variables}, capture_output=True, text=True
    )
    assert made.stdout.split() == ["ab", "ac"], made.stderr


# --- more trials


@pytest.mark.parametrize(("space", "begun", "more"), [(TPE, 2, 5), (GRID, 1, 6)])
def test_a_finished_sweep_goes_on_to_more_trials_as_one_that_was_asked_for_them(space, begun, more, tmp_path):
    desk = desk_of(tmp_path, "a", space=space, n_trials=begun)
    desk.finish()
    before = {trial.key: trial.state for trial in desk.ledger.trials()}
    desk.crash()
    settings = extend.with_trials(desk.settings, more, tmp_path / "mlflow_runs")
    assert stored.load(desk.folder) == settings
    again = Desk(desk.folder, settings)
    again.finish()
    trials = again.ledger.trials()
    assert sum(trial.origin == "search" for trial in trials) == more or space is GRID
    assert before.items() <= {trial.key: trial.state for trial in trials}.items()
    assert len(trials) > len(before)
    assert all(trial.test_evaluation for trial in to_evaluate(trials, settings))
    again.ledger.set_fact("workload", asdict(WORKLOAD))
    again.crash()
    assert [d for d in of_ledger(read(settings, desk.folder)) if "asked for" in d.text] == []


def test_fewer_trials_or_edited_settings_leave_a_sweep_as_it_was(tmp_path):
    desk = desk_of(tmp_path, "a")
    desk.ledger.set_fact(stored.ASKED, desk.settings.model_dump_json())
    desk.crash()
    before = (desk.folder / "settings.json").read_bytes()
    for n_trials in (2, 3):
        with pytest.raises(ConfigError, match=f"trials is {n_trials}, but sweep 'a' has 3"):
            extend.with_trials(desk.settings, n_trials, tmp_path / "mlflow_runs")
    edited = desk.settings.model_copy(update={"seed": 9})
    with pytest.raises(ConfigError, match="seed is 9"):
        extend.with_trials(edited, 5, tmp_path / "mlflow_runs")
    assert (desk.folder / "settings.json").read_bytes() == before


# --- the plan

SAME = "On a GPU the same command tunes GPT-2 Medium on Alpaca"


@pytest.mark.parametrize(
    ("words", "tail"),
    [
        ((), f"{SAME}: space pareto, 32 trials of 200 steps.\n"),
        (("--trials", "4"), f"{SAME}.\n"),
        (("--steps", "4"), f"{SAME}.\n"),
        (("--space", "demo"), f"{SAME}.\n"),
        (("--base-model", "demo"), None),
        (("--data", "demo"), None),
        (("--device", "cpu"), None),
        (("--sampler", "tpee"), None),
    ],
)
def test_the_demo_says_what_the_same_command_does_on_a_gpu_where_that_is_true(words, tail, tmp_path):
    err = called("run", "--dry-run", *words, cwd=tmp_path).err
    assert SAME not in err if tail is None else tail in err


def test_the_dry_run_of_a_gpu_has_a_row_for_each_first_trial_with_its_peak_and_fits_80_columns(tmp_path):
    finished = called("run", "--dry-run", "--device", "cuda", cwd=tmp_path, COLUMNS="80")
    planned = called("run", "--dry-run", "--device", "cuda", "--json", cwd=tmp_path).json
    _, _, table = finished.out.partition("what is predicted")
    for peak, config in zip(planned["predicted_peak_mib"], planned["first_configs"], strict=True):
        row = next(line for line in table.splitlines() if f" {peak:.0f}" in line)
        assert f"{config['learning_rate']:.1e}" in row
    assert max(map(len, table.splitlines()[1:])) <= 80
    assert "USD" not in table
    assert " min\n" not in table, "nothing ran on a GPU here, so no time is known"
    assert table.count("minutes: add --gpu T4, or another GPU's name; or run a sweep on a GPU here once") == 1


def test_without_a_gpus_name_dry_run_and_fit_say_which_they_mean_and_how_much_another_needs(tmp_path):
    """A step on an H100 takes larger workspaces: cuBLAS keeps 32 MiB twice there, 8.1 MiB twice on others."""
    words = ("run", "--dry-run", "--space", "demo", "--device", "cuda")
    peaks = {
        gpu: called(*words, *(("--gpu", gpu) if gpu else ()), "--json", cwd=tmp_path).json["predicted_peak_mib"][0]
        for gpu in (None, "H100", "RTX4090")
    }
    assert peaks[None] == peaks["H100"]
    said = f"older GPUs need {peaks['H100'] - peaks['RTX4090']:.0f} MiB less"
    assert said in " ".join(called(*words, cwd=tmp_path).out.split())
    assert "older GPUs" not in called(*words, "--gpu", "H100", cwd=tmp_path).out

    def fitted(*more: str):
        return called("fit", "demo", *more, cwd=tmp_path)

    mib = [fitted("--json", *more).json["points"][0]["peak_mib"] for more in ((), ("--gpu", "RTX4090"))]
    assert mib[0] == mib[1]
    assert f"from that on {peaks['H100'] - peaks['RTX4090']:.0f} MiB more (--gpu H100)" in fitted().out
    assert "from that on" in fitted("--memory", "16GiB").out
    assert "from that on" not in fitted("--gpu", "T4").out + fitted("--gpu", "H100").out


def test_the_dry_run_for_a_named_gpu_has_minutes_and_money_without_one(tmp_path):
    words = ("run", "--dry-run", "--gpu", "T4", "--usd-per-gpu-hour", "0.6")
    slow, fast = (called(*words, *more, "--json", cwd=tmp_path).json for more in ((), ("--gpu", "H100")))
    assert slow["settings"]["device"] == "cuda"
    assert slow["predicted_seconds"] > 5 * fast["predicted_seconds"] > 0
    shown = called(*words, cwd=tmp_path, COLUMNS="80").out
    assert "on one T4 by its published speeds" in shown
    assert " min   USD\n" in shown
    assert "minutes: add" not in shown


@pytest.mark.parametrize("gpu", ["T4", "H200"])
def test_the_dry_run_for_a_named_gpu_predicts_the_peak_that_fit_does(gpu, tmp_path):
    planned = called("run", "--dry-run", "--gpu", gpu, "--json", cwd=tmp_path).json
    for config, peak in zip(planned["first_configs"], planned["predicted_peak_mib"], strict=True):
        shape = ("precision", "loop", "batch_size", "max_length_tokens", "rank", "dropout")
        words = [f"--{name.replace('_', '-')}={config[name]}" for name in shape]
        words += ["--targets", "+".join(config["targets"]), "--gpu", gpu, "--json"]
        found = called("fit", "openai-community/gpt2-medium", *words, cwd=tmp_path).json
        assert peak == pytest.approx(found["peak_mib"], abs=0.01)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--gpu", "T4"], "is for --dry-run"),
        (["--gpu", "T5", "--dry-run"], "T4"),
        (["--gpu", "", "--dry-run"], "no GPU ''"),
        (["--gpu", "T4", "--dry-run", "--device", "cpu"], "leave out --device cpu"),
    ],
)
def test_a_gpu_that_nobody_knows_or_that_a_run_would_not_take_is_refused(words, why, tmp_path):
    refused = called("run", *words, cwd=tmp_path)
    assert refused.code == 2
    assert refused.err.startswith("error: --gpu: ")
    assert why in refused.err


@pytest.mark.parametrize("base", ["demo", "openai-community/gpt2-medium"])
def test_without_a_gpu_the_dry_run_says_what_its_trials_need_on_one_and_how_to_plan_for_that(base, tmp_path):
    words = ("run", "--dry-run", "--base-model", base)
    planned = called(*words, "--json", cwd=tmp_path).json
    on_gpu = called(*words, "--device", "cuda", "--space", "demo", "--engine", "eager", "--json", cwd=tmp_path)
    assert planned["settings"]["device"] == "cpu"
    assert planned["predicted_peak_mib"] == on_gpu.json["predicted_peak_mib"]
    text = called(*words, cwd=tmp_path, COLUMNS="80").out
    _, _, table = text.partition("what is predicted")
    assert "MiB on" in table
    for peak in planned["predicted_peak_mib"]:
        assert any(line.rstrip().endswith(f" {peak:.0f}") for line in table.splitlines())
    assert "add --device cuda" in table
    assert max(map(len, table.splitlines()[1:])) <= 80


def test_of_a_base_that_only_the_hub_knows_the_dry_run_says_what_asks_it_for_the_peak(tmp_path):
    for more in ((), ("--gpu", "T4")):
        text = called("run", "--dry-run", "--base-model", "some/model", *more, cwd=tmp_path, COLUMNS="80").out
        assert "MiB and minutes: this base's shape is not known here" in text
        assert "MiB on" not in text
        assert "add --gpu" not in text, "no GPU's name makes up for the shape"


def test_where_the_gpu_and_its_price_are_known_the_dry_run_says_minutes_and_money(tmp_path):
    root = tmp_path / "mlflow_runs"
    duration.keep(make(), SweepDevice(names=frozenset({"g"}), compute_dtype="bfloat16", speed=SPEED), root)
    words = ("run", "--dry-run", "--device", "cuda", "--usd-per-gpu-hour")
    tables = [called(*words, price, cwd=tmp_path, COLUMNS="80").out for price in ("100", "200")]
    rows = []
    for table in tables:
        lines = [line for line in table.splitlines() if line.lstrip().startswith(("nf4", "16bit"))]
        rows.append([line.split()[-2:] for line in lines])
    assert len(rows[0]) == 5
    for (minutes, usd), (_, twice) in zip(*rows, strict=True):
        assert float(usd) == pytest.approx(float(minutes) / 60 * 100, abs=0.1)
        assert float(twice) == pytest.approx(2 * float(usd), abs=0.011)
