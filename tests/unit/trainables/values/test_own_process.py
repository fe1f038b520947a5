"""A module as a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainables.values.own_process import ROOT, command_of, own_environment


@pytest.mark.parametrize("entry", ["", ".", "here"])
def test_a_file_of_the_folder_that_it_stands_in_is_no_module_of_it(entry, tmp_path, monkeypatch):
    """Whatever made it one of this process's own: an interactive Python, a notebook, a script of that folder."""
    (tmp_path / "this.py").write_text("raise SystemExit('not the library')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path) if entry == "here" else entry, *sys.path])
    done = subprocess.run(command_of("this"), env=own_environment(), capture_output=True, text=True)
    assert done.stdout.startswith("The Zen of Python"), done.stderr


def test_it_imports_what_this_process_can_be_it_from_the_projects_own_folder(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [ROOT, *(path for path in sys.path if path not in ("", ROOT))])
    assert own_environment()["PYTHONPATH"].split(os.pathsep)[0] == ROOT
    monkeypatch.setattr(sys, "path", [Path("/nowhere"), *sys.path])  # no text: Python passes over it, too
    assert own_environment()["PYTHONPATH"].split(os.pathsep)[0] == ROOT
