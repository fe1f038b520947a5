"""What the texts say of measurements is what the recorded files hold."""

import pytest

import search_spaces
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.driver.plan import GPU_DEFAULTS
from orchestrator.report import outputs, render
from orchestrator.report.content import report_of
from tests.bench import memory_families, recorded
from tests.bench.replay import read as read_table
from tests.bench.search import TABLE
from tests.bench.search_table import SPACE_FILE
from tests.support.in_process import called
from tests.support.sweeps import REPO
from trainables.data.splits import SPLIT_ROWS

README = (REPO / "README.md").read_text()
LOG = (REPO / "tests" / "bench" / "LOG.md").read_text()
SEARCH_LOG = (REPO / "tests" / "bench" / "SEARCH_LOG.md").read_text()

SPLIT_USES = {"train": "training", "validation": "validation", "test": "test"}


def section(text: str, heading: str) -> str:
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def table(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_the_readme_s_table_of_results_is_what_the_recorded_files_print():
    assert table(section(README, "What came out so far")) == list(recorded.readme_rows())


def test_the_log_s_runs_are_what_the_recorded_runs_print():
    runs = list(recorded.log_lines())
    assert table(LOG)[: len(runs)] == runs


def test_the_log_s_table_of_both_protocols_is_what_their_recorded_runs_print():
    assert table(section(LOG, "Protocol 2 beside protocol 1")) == list(recorded.protocol_lines())


def test_what_a_run_did_not_come_to_is_a_dash_in_the_table():
    run = recorded.read("speed-h200-protocol2-run1.json")
    assert recorded.shown(recorded.SPEED_FIGURES["the peer's step (ms)"], run) == "274"
    assert recorded.shown(recorded.SPEED_FIGURES["the peer's step (ms)"], run | {"peer": None}) == "-"


def test_the_log_s_table_of_predicted_peaks_is_what_the_bench_prints_of_the_recorded_shapes(capsys):
    memory_families.show(memory_families.read(recorded.FAMILY_SHAPES))
    said = section(LOG, "Predicted peaks over model families")
    assert said.split("```text\n")[1].split("```")[0] == capsys.readouterr().out


def test_the_search_log_holds_what_the_recorded_replay_prints():
    assert SEARCH_LOG.split("```text\n")[1].split("```")[0].splitlines() == list(recorded.search_log_lines())


def test_the_search_log_says_the_size_of_the_recorded_table():
    space = search_spaces.load(str(SPACE_FILE))
    tables = read_table(REPO / TABLE, space)
    (seconds,) = {round(one.seconds) for one in tables.values()}
    assert (
        f"{space.n_points} points of the demo, every rung, {len(tables)} seeds, {seconds} GPU-seconds each"
        in SEARCH_LOG
    )


def test_the_readme_says_the_rows_asked_for_and_the_sweep_without_options():
    split = [f"{SPLIT_ROWS[name]:,} {what}" for name, what in SPLIT_USES.items()]
    assert f"{sum(SPLIT_ROWS.values()):,} rows ({', '.join(split)})" in README
    steps = search_spaces.load(GPU_DEFAULTS["space"]).fixed["max_steps"]
    assert f"{GPU_DEFAULTS['trials']}\ntrials of {steps} steps" in README


@pytest.fixture
def at_home(monkeypatch):
    """Where commands find the recorded sweeps, and reports the config of their base."""
    monkeypatch.chdir(REPO)


def test_the_recorded_answers_are_what_the_command_prints_of_the_recorded_sweeps():
    answered = called("answers", *recorded.SWEEPS, cwd=REPO)
    assert answered.code == 0, answered.err
    assert answered.out == (recorded.RECORDED / "answers.md").read_text()


def test_where_the_time_of_a_recorded_sweep_went_can_be_read(at_home):
    said = called("status", "smollm2-pareto", "--timeline", cwd=REPO)
    assert said.code == 0, said.err
    assert "worker 1: [i]mports" in said.out
    assert "test [e]valuation" in said.out


@pytest.mark.parametrize("name", recorded.SWEEPS)
def test_a_recorded_report_is_what_is_written_of_its_ledger_and_its_pictures_are_there(name, at_home):
    report = (recorded.RECORDED / name / "report.md").read_text()
    drawn = {path: title for path, title in outputs.PICTURES.items() if (recorded.RECORDED / name / path).is_file()}
    assert len(drawn) == report.count("](figures/") > 0
    assert report == render.markdown(report_of(SweepSnapshot.find(name)), drawn)


@pytest.mark.parametrize("name", recorded.SWEEPS)
def test_a_recorded_ledger_quotes_at_most_5_rows_and_no_folder_of_a_machine(name):
    snapshot = SweepSnapshot.read_in(recorded.RECORDED / name)
    quoted = set()
    for trial in snapshot.trials:
        if trial.test_evaluation:
            quoted |= {sample.prompt for sample in trial.test_evaluation.samples}
    assert len(quoted) <= 5
    for path in (recorded.RECORDED / name).glob("*.*"):
        assert b"/tmp/" not in path.read_bytes(), path


def test_figures_of_the_recorded_base_say_that_its_weights_had_been_rounded():
    for name in recorded.SWEEPS:
        snapshot = SweepSnapshot.read_in(recorded.RECORDED / name)
        assert "rounded once to Q4_1" in snapshot.caption
        assert f"({snapshot.workload.base_note})" in (recorded.RECORDED / name / "report.md").read_text()
    assert "rounded once to Q4_1" in recorded.read("sensitivity-smollm2/sensitivity.json")["caption"]


def test_a_run_that_says_something_else_gives_another_line():
    run = recorded.read("speed-h200.json")
    run["ours"]["trials_an_hour"] = 1234.4
    assert recorded.SPEED_FIGURES["trials an hour"](run) == "1,234"
