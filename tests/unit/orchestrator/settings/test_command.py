"""What printed hints begin with: words that work in the shell and the folder where they are printed."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sweeps import command, environment

SHOW = "from orchestrator.settings.command import *; print(command()); print(python()); print(pages())"


def hints(cwd: Path, *begun: str, path: str = "/usr/bin:/bin", **variables: str) -> list[str]:
    """What `command` and `python` say in a process that was started by these words."""
    finished = subprocess.run(
        begun, cwd=cwd, env=environment(PATH=path, **variables), capture_output=True, text=True, check=True
    )
    return finished.stdout.splitlines()


@pytest.fixture
def script(tmp_path) -> Path:
    """An installed script beside its Python, as pip writes it."""
    folder = tmp_path / "my tree" / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").symlink_to(sys.executable)
    script = folder / "qlora-sweep"
    script.write_text(f"#!{sys.executable}\n{SHOW}\n")
    script.chmod(0o755)
    return script


def test_a_script_under_the_folder_is_named_by_the_way_to_it(script):
    tree = script.parents[2]
    assert hints(tree, ".venv/bin/qlora-sweep")[0] == ".venv/bin/qlora-sweep"
    assert hints(tree, str(script))[0] == ".venv/bin/qlora-sweep"
    assert hints(tree / ".venv", "bin/qlora-sweep")[0] == "bin/qlora-sweep"


def test_a_script_elsewhere_is_named_whole_and_as_one_word_of_the_shell(script, tmp_path):
    (tmp_path / "work").mkdir()
    assert hints(tmp_path / "work", str(script))[0] == shlex.quote(str(script))


def test_a_script_that_the_shell_finds_is_named_alone_and_another_of_its_name_is_not(script, tmp_path):
    tree, path = script.parents[2], f"{script.parent}:/usr/bin:/bin"
    assert hints(tree, str(script), path=path)[0] == "qlora-sweep"
    other = tmp_path / "bin" / "qlora-sweep"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o755)
    assert hints(tree, str(script), path=f"{other.parent}:{path}")[0] == ".venv/bin/qlora-sweep"


def test_a_process_that_was_started_otherwise_names_the_module_under_its_own_python(script):
    tree, python = script.parents[2], script.parent / "python"
    assert hints(tree, str(python), "-c", SHOW)[:2] == [".venv/bin/python -m orchestrator.cli", ".venv/bin/python"]
    found = hints(tree, str(python), "-c", SHOW, path=f"{script.parent}:/usr/bin:/bin")
    assert found[:2] == ["python -m orchestrator.cli", "python"]


def test_who_said_make_is_told_to_say_it_again_for_the_pages(script):
    tree = script.parents[2]
    assert hints(tree, str(script), MAKELEVEL="1")[2] == "make ui"
    assert hints(tree, "env", "--unset=MAKELEVEL", str(script))[2] == ".venv/bin/qlora-sweep ui"


def test_a_hint_can_be_said_as_it_stands(tmp_path):
    refused = command("best", cwd=tmp_path).err.strip()
    hint = refused.rpartition("run one first: ")[2]
    words = {"shell": True, "cwd": tmp_path, "env": environment(), "capture_output": True}
    assert subprocess.run(f"{hint} --dry-run", **words).returncode == 0
    assert "qlora-sweep" not in refused  # it was not started by that
