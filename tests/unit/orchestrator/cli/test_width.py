"""What commands print on a terminal of 80 columns stays within them; an address alone is not broken."""

import re

import pytest

from orchestrator.analysis.snapshot import SweepSnapshot
from tests.bench.recorded import RECORDED, SWEEPS
from tests.support.in_process import called
from tests.support.sweeps import REPO
from tests.support.swept import swept

LONG = "a-sweep-whose-name-is-as-long-as-one-may-be-with-sixty-four-char"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A sweep of the longest name, without adapters and with files that nobody has written."""
    folder = tmp_path_factory.mktemp("width")
    swept(folder / "mlflow_runs", name=LONG)
    return folder


def wide(text: str) -> list[str]:
    """Lines over 80 columns that could be broken."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)  # without colours
    return [line for line in plain.splitlines() if len(line) > 80 and " " in line.strip()]


@pytest.mark.parametrize(
    "words",
    [
        *[(command, LONG) for command in ("status", "best", "report", "verify", "delete", "stop", "card")],
        ("report", LONG, LONG),
        ("answers", LONG),
        ("export", LONG, "dest"),
        ("list",),
        ("init", "a/folder/of/ones/own/for/rows/and/space"),
        ("run", "--dry-run"),
        ("run", "--dry-run", "--gpu", "T4"),
        ("fit", "gpt2", "--gpu", "T4"),
    ],
    ids=" ".join,
)
def test_what_a_command_says_of_a_sweep_of_ones_own_is_within_the_terminal(words, place):
    said = called(*words, cwd=place, typed="n\n", COLUMNS="80")
    assert said.out + said.err
    assert wide(said.out) == wide(said.err) == []


@pytest.mark.parametrize(
    "words", [("status", "smollm2-pareto", "--timeline"), ("answers", *SWEEPS), ("report", *SWEEPS[:2])], ids=" ".join
)
def test_what_a_command_says_of_recorded_sweeps_is_within_the_terminal(words):
    said = called(*words, cwd=REPO, typed="", COLUMNS="80")
    assert said.code == 0, said.err
    assert wide(said.out) == wide(said.err) == []


@pytest.mark.parametrize("columns", ["40", "80", "120"])
def test_two_sweeps_are_laid_out_on_a_terminal_with_every_figure_and_stand_as_markdown_in_a_pipe(columns):
    words = ("report", *SWEEPS[:2])
    on_terminal = called(*words, cwd=REPO, typed="", COLUMNS=columns).out
    in_pipe = called(*words, cwd=REPO, COLUMNS=columns).out
    assert "| --- |" in in_pipe
    assert ("| --- |" in on_terminal) == (columns == "40"), "its tables do not fit"
    on_terminal, head = on_terminal.partition("Front of")[0], in_pipe.partition("## Front of")[0]
    assert "…" not in on_terminal
    figures = set(re.findall(r"\d+\.\d+", head))
    assert len(figures) > 20
    assert figures <= set(re.findall(r"\d+\.\d+", on_terminal))


@pytest.mark.parametrize("columns", ["80", "120"])
def test_a_command_among_answers_stays_one_however_it_is_folded(columns):
    text = called("answers", SWEEPS[0], cwd=REPO, typed="", COLUMNS=columns).out
    assert "| --- |" not in text, "tables are laid out"
    assert "1.9914" in text
    lines = text.splitlines()
    begins = [n for n, line in enumerate(lines) if line.lstrip().startswith("$ ")]
    assert begins
    for n in begins:
        while lines[n].endswith("\\"):
            n += 1
        assert not lines[n + 1].strip().startswith("--")


def test_the_fronts_of_two_sweeps_stand_whole_on_a_terminal():
    names = SWEEPS[:2]
    text = called("report", *names, cwd=REPO, typed="", COLUMNS="80").out
    for name in names:
        _, _, front = text.partition(f"Front of {name}")
        for member in SweepSnapshot.read_in(RECORDED / name).front.members:
            found = next(line for line in front.splitlines() if re.match(rf"\s*{member.number}\s", line))
            assert f"{member.history[-1].eval_loss_nats:.4f}" in found
            assert f"{member.cost.peak_memory_mib:.1f}" in found
