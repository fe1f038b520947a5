"""The Makefile: each variable reaches its program as it was typed, and one that nothing takes is an error; benches."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.cli.group import load
from orchestrator.cli.lines import TYPED
from tests.bench import __main__ as benches
from tests.support.sweeps import REPO

AWKWARD = """two words, 'single', "double", $HOME `x` $(x) \\ # ; & (x)"""


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What make would do; its own variables of a `make test` around this are none of this one's."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    words = ["make", "--dry-run", "--no-print-directory", *arguments]
    return subprocess.run(words, cwd=REPO, env=env, capture_output=True, text=True)


KNOWN = make("--print-data-base", "clean").stdout
"""All that make knows of this Makefile, its variables expanded."""
TARGETS = re.search(r"^\.PHONY: (.*)$", KNOWN, re.M)[1].split()
TAKES = {target: names.split() for target, names in re.findall(r"^([a-z-]+)_takes := (.*)$", KNOWN, re.M)}


@pytest.mark.parametrize("target", [None, *TARGETS])
def test_a_variable_that_a_target_does_not_take_is_refused_by_name(target):
    refused = make(*filter(None, [target]), f"TRAILS={AWKWARD}")
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.splitlines()
    assert "there is no variable TRAILS here" in line
    assert "ARGS='--flag value'" in line
    assert ("did you mean TRIALS" in line) == ("TRIALS" in TAKES.get(target, []))


def test_without_a_target_nothing_is_run_and_the_targets_are_listed():
    assert make().stdout == make("help").stdout


@pytest.mark.parametrize(
    ("arguments", "said"), [(["TRIALS=2"], "make sweep TRIALS="), (["sweep", "HOST=a"], "make ui HOST=")]
)
def test_a_variable_of_another_target_is_answered_with_that_target(arguments, said):
    refused = make(*arguments)
    assert refused.returncode == 2
    assert said in refused.stderr


def test_help_lists_what_each_target_takes():
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    shown = subprocess.run(["make", "help"], cwd=REPO, env=env, capture_output=True, text=True).stdout
    for target, names in TAKES.items():
        listed = re.search(rf"^make {target}: ([A-Z0-9_\s]+)", shown, re.M)[1]
        assert listed.split()[: len(names)] == names


@pytest.mark.parametrize("target", sorted(TAKES))
def test_every_variable_of_a_target_reaches_its_program_as_it_was_typed(target):
    given = [f"{name}={AWKWARD}" for name in TAKES[target]]
    made = make(target, *given, "ARGS=--one 'two words'", f"PYTHON={shutil.which('python3')}")
    assert made.returncode == 0, made.stderr
    words = shlex.split(made.stdout.splitlines()[-1])
    assert words[-2:] == ["--one", "two words"]
    assert words.count(AWKWARD) == len(given)
    flags = [word for word in words if word.startswith("--")]
    assert {flag[2:].replace("-", "_").upper() for flag in flags if flag not in ("--one", "--force")} <= set(
        TAKES[target]
    )


def test_a_variable_of_another_target_is_refused_beside_one_and_taken_beside_both():
    assert make("ui", "NAME=a").returncode == 2
    assert make("ui", "report", "NAME=a", "PORT=5001").returncode == 0
    assert make("lint", "VENV=.venv").returncode == 0


def test_every_variable_of_a_sweep_is_a_flag_of_run(capsys):
    with pytest.raises(SystemExit):
        load("run").main(["--help"], prog_name="run")
    flags = re.findall(r"--[a-z0-9-]+", capsys.readouterr().out)
    assert [name for name in TAKES["sweep"] if f"--{name.lower().replace('_', '-')}" not in flags] == []


def test_the_program_knows_the_variables_of_a_sweep_and_of_mlflow_s_pages():
    assert set(TYPED) == {*TAKES["sweep"], *TAKES["ui"]}


# --- benches


def test_without_a_name_every_bench_is_listed_and_a_wrong_one_is_answered_with_the_nearest(capsys):
    assert benches.main([]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [*benches.FILES, "all"]
    assert benches.main(["serch"]) == 2
    assert "no bench 'serch'; did you mean 'search'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", benches.FILES)
def test_the_words_behind_a_bench_reach_it(name):
    file = Path(benches.command(name)[-1])
    assert "__main__" in file.read_text(encoding="utf-8")
    words = shlex.split(make("bench", f"ARGS={name} --one 'two words'").stdout.splitlines()[-1])
    assert words[-5:] == ["-m", "tests.bench", name, "--one", "two words"]
    assert ("syne-tune" in make("bench", f"ARGS={name}", "VENV=/nowhere").stdout) == (name == "search")


def test_every_bench_that_anything_here_names_is_one():
    folders = ("orchestrator", "tests", "trainables")
    files = [*REPO.glob("*.md"), *(file for folder in folders for file in (REPO / folder).rglob("*.*"))]
    named = set()
    for file in files:
        if file.suffix in (".md", ".py"):
            named |= set(re.findall(r"make bench ARGS='?([a-z][a-z-]+)", file.read_text("utf-8")))
    assert named <= {*benches.FILES, "all"}
    assert len(named) > 5


def test_the_width_of_a_terminal_is_no_setting_of_a_sweep(monkeypatch):
    """Many programs export it as COLUMNS, the name of a sweep's own setting."""
    monkeypatch.setenv("COLUMNS", "80")
    assert "--columns" not in make("sweep").stdout
    assert "--columns 'output=answer'" in make("sweep", "COLUMNS=output=answer").stdout
