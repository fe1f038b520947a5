"""Commands by name: listed without being imported, each with the first line of its own help."""

import sys

import pytest

from orchestrator.cli import group
from tests.support.sweeps import command

MODULES = (
    "import sys; from orchestrator.cli.main import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
)


@pytest.mark.parametrize("name", group.COMMANDS)
def test_a_command_is_listed_with_the_first_line_of_its_own_help(name):
    first, _, _ = group.load(name).help.partition("\n\n")
    assert first == group.COMMANDS[name]


@pytest.mark.parametrize("arguments", [["--help"], ["rnu"]], ids=["help", "a wrong name"])
def test_help_and_a_wrong_name_import_no_command_and_no_settings(arguments, tmp_path):
    finished = command(*arguments, cwd=tmp_path, program=(sys.executable, "-c", MODULES))
    imported = finished.err.splitlines()[-1].split()
    assert "orchestrator.cli.group" in imported
    assert not [name for name in imported if name.startswith("orchestrator.cli.commands.")]
    assert "orchestrator.settings" not in imported


def test_a_wrong_name_is_answered_with_the_nearest(tmp_path):
    finished = command("rnu", cwd=tmp_path)
    assert finished.code == 2
    assert "No such command 'rnu'. Did you mean 'run'?" in finished.err


def test_help_explains_each_word_once(tmp_path):
    shown = " ".join(command("--help", cwd=tmp_path).out.split())
    for word, meaning in group.WORDS.items():
        assert shown.count(f"{word}: {meaning}.") == 1
