"""The Makefile's variables: each reaches the program as it was typed, and one that nothing takes is an error."""

import os
import re
import shlex
import shutil
import subprocess

import pytest

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
    assert ("did you mean TRIALS" in line) == ("TRIALS" in TAKES.get(target or "sweep", []))


@pytest.mark.parametrize("target", sorted(TAKES.keys() - {"bench"}))  # which stands for several programs
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
    assert make("bench", "PEER=2").returncode == 0  # of one of those it stands for
    assert make("lint", "VENV=.venv").returncode == 0
