"""The watch over a cluster: silence interrupts the main thread, or ends a process that does not listen."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import count

import pytest

from orchestrator.cluster import heartbeat
from orchestrator.ledger import Ledger
from tests.support.sweeps import REPO

STUCK = """
import signal, time
from orchestrator.cluster import heartbeat

signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a thread that waits in native code
with heartbeat.watched("it was lost", is_alive=lambda: False, every=0.05, patience=0.1, grace=0.2):
    time.sleep(60)
"""

LEAVING_ALL = """
import signal, sys, time
from pathlib import Path
from orchestrator.cluster import heartbeat
from orchestrator.ledger import Ledger

signal.signal(signal.SIGINT, signal.SIG_IGN)
path = Path(sys.argv[1])
ledger = Ledger(path)
ledger.set_fact("left", "whole")
assert path.with_name("ledger.db-wal").stat().st_size, "nothing is left to be brought into the one file"
act = (lambda: Ledger(path).close()) if sys.argv[2] == "closes" else (lambda: 1 / 0)
with heartbeat.watched("it was lost", last_act=act, is_alive=lambda: False, every=0.05, patience=0.1, grace=0.2):
    time.sleep(60)
"""


@pytest.fixture
def pythons_own_interrupt():
    """Ray Tune leaves a handler of its own behind, in a process that has run a sweep."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("pythons_own_interrupt")
def test_a_silent_cluster_interrupts_a_main_thread_that_sleeps():
    watched = heartbeat.watched("", is_alive=lambda: False, every=0.05, patience=0.2, grace=60)
    with pytest.raises(KeyboardInterrupt), watched as heart:
        time.sleep(60)
    assert heart.lost


@pytest.mark.usefixtures("pythons_own_interrupt")
def test_a_cluster_that_takes_the_question_and_never_answers_interrupts_it_too():
    never = threading.Event()
    watched = heartbeat.watched("", is_alive=never.wait, every=0.05, patience=0.2, grace=60)
    with pytest.raises(KeyboardInterrupt), watched as heart:
        time.sleep(60)
    never.set()
    assert heart.lost


def test_a_cluster_that_answers_now_and_then_is_not_given_up():
    asked = count(1)
    n_asked = []

    def is_alive() -> bool:
        n_asked.append(next(asked))
        return n_asked[-1] % 3 == 0

    with heartbeat.watched("", is_alive=is_alive, every=0.01, patience=0.1, grace=60) as heart:
        while len(n_asked) < 30:
            time.sleep(0.01)
    assert not heart.lost


def test_a_process_that_does_not_listen_is_ended_with_its_last_words():
    done = subprocess.run([sys.executable, "-c", STUCK], cwd=REPO, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert done.stderr == "error: it was lost\n"


def ended(path, act) -> None:
    """Run a process to its end whose cluster is lost while it holds a ledger and does not listen."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVING_ALL, str(path), act], cwd=REPO, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr == "error: it was lost\n"


def test_a_process_that_is_ended_leaves_its_whole_ledger_in_the_one_file(tmp_path):
    """Read without the file beside it, in which SQLite keeps what is not in the one file yet."""
    ended(tmp_path / "ledger.db", "closes")
    shutil.copy(tmp_path / "ledger.db", tmp_path / "alone.db")
    ledger = Ledger(tmp_path / "alone.db", read_only=True)
    assert ledger.fact("left") == "whole"
    ledger.close()


def test_a_last_act_that_fails_does_not_keep_the_process(tmp_path):
    ended(tmp_path / "ledger.db", "fails")


LOST_SOON = """
import signal, time
from pathlib import Path
from orchestrator.cli.running import _ended_at_once
from orchestrator.cluster import heartbeat

signal.signal(signal.SIGINT, signal.default_int_handler)
with _ended_at_once(Path("nowhere/ledger.db")):
    try:
        with heartbeat.watched("", is_alive=lambda: False, every=0.05, patience=0.1, grace=60) as heart:
            time.sleep(50)
    except KeyboardInterrupt:
        print(heart.lost)
    assert not heartbeat.has_interrupted()
    signal.raise_signal(signal.SIGINT)
"""


def test_a_cluster_lost_before_trials_begin_does_not_end_the_command_as_ctrl_c_does():
    done = subprocess.run([sys.executable, "-c", LOST_SOON], cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.stdout == "True\n", done.stderr
    assert (done.returncode, "interrupted; nowhere had not begun" in done.stderr) == (130, True)
