"""Ctrl-C before a sweep's trials begin, in a process of its own."""

import subprocess
import sys

import pytest

from orchestrator.ledger.ownership import owned
from orchestrator.settings.command import command
from tests.support.sweeps import REPO

ENDED = """
import signal, sys
from pathlib import Path
from orchestrator.cli.running import _ended_at_once
from orchestrator.ledger.ownership import owned

folder = Path(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)
with _ended_at_once(folder / "ledger.db"), owned(folder):
    (folder / "ray" / "tune").mkdir(parents=True)
    (folder / "ray" / "tune" / "tuner.pkl").touch()
    signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize("has_begun", [False, True])
def test_ctrl_c_before_trials_begin_leaves_nothing_that_nobody_reads(tmp_path, has_begun):
    folder = tmp_path / "sweep"
    if has_begun:
        folder.mkdir()
        (folder / "ledger.db").touch()
    done = subprocess.run(
        [sys.executable, "-c", ENDED, str(folder)], cwd=REPO, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 130, done.stderr
    said = f"go on with: {command()} resume sweep" if has_begun else "sweep had not begun"
    assert done.stderr.startswith(f"interrupted; {said}\n")
    left = sorted(path.name for path in folder.iterdir()) if folder.exists() else None
    assert left == (["ledger.db", "owner"] if has_begun else None)


OF_ANOTHER = """
import signal, sys
from pathlib import Path
from orchestrator.cli.running import _ended_at_once

signal.signal(signal.SIGINT, signal.default_int_handler)
with _ended_at_once(Path(sys.argv[1]) / "ledger.db"):
    signal.raise_signal(signal.SIGINT)
"""


def test_ctrl_c_touches_no_folder_that_another_process_holds(tmp_path):
    (tmp_path / "ray").mkdir()
    with owned(tmp_path):
        done = subprocess.run([sys.executable, "-c", OF_ANOTHER, str(tmp_path)], cwd=REPO, timeout=120)
        assert done.returncode == 130
        assert sorted(path.name for path in tmp_path.iterdir()) == ["owner", "ray"]


DIES = """
import sys
from pathlib import Path
from orchestrator.cli.running import _die

_die(Path(sys.argv[1]) / "ledger.db")
"""


def test_a_second_ctrl_c_ends_at_once_and_says_what_goes_on(tmp_path):
    program = [sys.executable, "-c", DIES, str(tmp_path / "mine")]
    done = subprocess.run(program, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 130
    assert done.stderr.startswith("interrupted; go on with: ")
    assert done.stderr.endswith(" resume mine\n")
