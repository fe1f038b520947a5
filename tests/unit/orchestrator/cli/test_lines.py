"""Lines between a terminal's edges, and settings in the words that were typed."""

import io
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.lines import as_typed, folded, for_stream, with_flags
from orchestrator.settings.command import command
from tests.support.in_process import Terminal

URL = "http://127.0.0.1:5000/#/experiments/1/runs/c50e2f61671640c3995647e7a2105a1f?workflowType=machine_learning-x-y"


@given(st.lists(st.text("abc-/_", min_size=1, max_size=30), min_size=1), st.integers(32, 120))
def test_a_folded_line_is_within_the_width_and_loses_no_word(words, width):
    lines = folded(" ".join(words), width).splitlines()
    assert max(map(len, lines)) <= width
    assert " ".join(lines).split() == words


@given(st.lists(st.integers(0, 10**6), min_size=1), st.integers(32, 120))
def test_a_per_cent_sign_stays_with_its_number(numbers, width):
    lines = folded(" ".join(f"{number} %" for number in numbers), width).splitlines()
    assert [line.strip()[:1] for line in lines if line.strip().startswith("%")] == []
    assert " ".join(" ".join(lines).split()) == " ".join(f"{number} %" for number in numbers)


def test_a_space_that_is_not_to_be_broken_stays_the_one_that_it_is():
    path = "/home/u/My\N{NO-BREAK SPACE}Files/rows.jsonl"
    assert path in folded(f"{'word ' * 8}{path} 5 %", 40)


def test_lines_are_folded_on_a_terminal_alone_and_addresses_stay_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = f"look further: make ui, then {URL}\n  indented\n{'word ' * 20}"
    assert for_stream(text, io.StringIO()) == text
    shown = for_stream(text, Terminal()).splitlines()
    assert URL in [line.strip() for line in shown]
    assert "  indented" in shown
    assert all(len(line) <= 40 for line in shown if URL not in line)


def test_a_command_on_several_lines_is_still_one_to_a_shell(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    command = f"$ echo {'word ' * 20}"
    shown = for_stream(command, Terminal())
    assert max(map(len, shown.splitlines())) <= 40
    assert shlex.split(shown.replace("\\\n", "")) == command.split()
    spaced = f"$ run --base-model '/data/my models/x y' {'word ' * 6}--columns \"instruction=the question\" --steps 60"
    assert shlex.split(for_stream(spaced, Terminal()).replace("\\\n", "")) == shlex.split(spaced)


SAID = {
    "BASE_MODEL: no config.json in 'x'": "--base-model: no config.json in 'x'",
    "DATA: give a file with DATA=/path/to/rows.json, or DATA=demo": (
        "--data: give a file with --data /path/to/rows.json, or --data demo"
    ),
    "DATA: choose with DATA_SPLIT=SPLIT or CONFIG/SPLIT": "--data: choose with --data-split SPLIT or CONFIG/SPLIT",
    "DATA: the tokenizer of BASE_MODEL has none": "--data: the tokenizer of --base-model has none",
    "DATA: no file '/home/DATA/BASE_MODEL.json' here": "--data: no file '/home/DATA/BASE_MODEL.json' here",
    "ADDRESS must be auto or HOST:PORT, got 'x'": "--address must be auto or HOST:PORT, got 'x'",
    "PORT 5000 of HOST is in use": "--port 5000 of HOST is in use",
    "BASE_MODEL: 'DATA' is neither a hub id (OWNER/NAME) nor a path": (
        "--base-model: 'DATA' is neither a hub id (OWNER/NAME) nor a path"
    ),
    "targets: no module 'q'": "targets: no module 'q'",
    "DATABASE is away": "DATABASE is away",
}


@pytest.mark.parametrize("message", SAID)
def test_a_setting_is_a_flag_to_who_types_flags_and_a_variable_to_who_calls_make(message, monkeypatch):
    monkeypatch.delenv("MAKELEVEL", raising=False)
    assert as_typed(message) == SAID[message]
    monkeypatch.setenv("MAKELEVEL", "1")
    assert as_typed(message) == message


def test_a_command_in_a_message_is_one_that_the_reader_can_type_here(monkeypatch):
    here = command()
    assert here != "qlora-sweep"
    for lead in (None, "1"):
        monkeypatch.setenv("MAKELEVEL", lead) if lead else monkeypatch.delenv("MAKELEVEL", raising=False)
        assert as_typed("stop it: qlora-sweep stop a") == f"stop it: {here} stop a"
        assert as_typed("`qlora-sweep verify a`, then go on") == f"`{here} verify a`, then go on"
        others = (f"first: {here} stop a", "in /tmp/qlora-sweep it lies", "/tmp/qlora-sweep stop", "qlora-sweep 3.1")
        for other in others:
            assert as_typed(other) == other


def test_who_calls_make_is_told_the_variable_of_each_flag_that_is_named(monkeypatch):
    monkeypatch.setenv("MAKELEVEL", "1")
    for message, variables in {
        "--trials: must be at least 1, got 0": "TRIALS=",
        "DATA: x has the columns q, a; say --columns instruction=q,output=a": "COLUMNS=",
        "--data-split is 'x', but --data 'demo' is a file, --data-split none": "DATA_SPLIT=, DATA=",
    }.items():
        assert as_typed(message) == f"{message} (with make: {variables})"
    assert as_typed("--max-hours: must be greater than 0, got 0") == "--max-hours: must be greater than 0, got 0"


def test_a_message_about_a_field_names_what_was_typed_for_it_and_no_other_word(monkeypatch):
    monkeypatch.delenv("MAKELEVEL", raising=False)
    flags = {"n_trials": "--trials", "memory": "--memory", "batch_size": "--batch-size"}
    for message, said in {
        "n_trials: must be at least 1": "--trials: must be at least 1",
        "batch_size must be a number": "--batch-size must be a number",
        "targets: no module 'n_trials'": "targets: no module 'n_trials'",
        "n_trials stands first": "--trials stands first",
        "memory stands first": "memory stands first",
        "SPACE x: n_trials: no such key": "SPACE x: n_trials: no such key",
    }.items():
        assert with_flags(message, flags) == said
