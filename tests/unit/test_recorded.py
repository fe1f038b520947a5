"""What the texts say of measurements is what the recorded files hold."""

import json

import pytest

import search_spaces
from orchestrator.driver.plan import GPU_DEFAULTS
from tests.bench import recorded
from tests.bench.replay import read as read_table
from tests.bench.search import TABLE
from tests.bench.search_table import SPACE_FILE
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


def test_the_readme_says_the_stand_in_s_seconds_the_rows_asked_for_and_the_sweep_without_options():
    seconds = json.loads((recorded.RECORDED / "standin-h200" / "stand_in.json").read_text())["seconds"]
    assert f"trained from nothing for {seconds:.0f} s" in README
    split = [f"{SPLIT_ROWS[name]:,} {what}" for name, what in SPLIT_USES.items()]
    assert f"{sum(SPLIT_ROWS.values()):,} rows ({', '.join(split)})" in README
    steps = search_spaces.load(GPU_DEFAULTS["space"]).fixed["max_steps"]
    assert f"{GPU_DEFAULTS['trials']}\ntrials of {steps} steps" in README


def test_a_run_that_says_something_else_gives_another_line_and_a_report_without_the_figure_none():
    run = recorded.read("speed-h200.json")
    run["ours"]["trials_an_hour"] = 1234.4
    assert recorded.SPEED_FIGURES["trials an hour"](run) == "1,234"
    with pytest.raises(ValueError, match="nothing there like"):
        recorded.memory("4 bits save nothing")
