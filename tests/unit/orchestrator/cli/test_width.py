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


@pytest.mark.parametrize("words", [("answers", SWEEPS[0]), ("report", *SWEEPS[:2])], ids=" ".join)
def test_markdown_is_laid_out_on_a_terminal_and_as_it_is_in_a_pipe(words):
    on_terminal = called(*words, cwd=REPO, typed="", COLUMNS="80").out
    in_pipe = called(*words, cwd=REPO, COLUMNS="80").out
    assert "| --- |" in in_pipe
    assert "| --- |" not in on_terminal
    assert "─" * 20 in on_terminal
    words_of = [set(re.findall(r"[a-z]{6,}", text)) for text in (in_pipe, on_terminal)]
    assert len(words_of[0] & words_of[1]) > 0.8 * len(words_of[0]), "nothing is lost but what a line breaks"


def test_the_fronts_of_two_sweeps_stand_whole_on_a_terminal():
    names = SWEEPS[:2]
    text = called("report", *names, cwd=REPO, typed="", COLUMNS="80").out
    for name in names:
        _, _, front = text.partition(f"Front of {name}")
        for member in SweepSnapshot.read_in(RECORDED / name).front.members:
            found = next(line for line in front.splitlines() if re.match(rf"\s*{member.number}\s", line))
            assert f"{member.history[-1].eval_loss_nats:.4f}" in found
            assert f"{member.cost.peak_memory_mib:.1f}" in found
