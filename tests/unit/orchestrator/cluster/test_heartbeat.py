"""The watch over a cluster: silence interrupts the main thread, or ends a process that does not listen."""

import signal
import subprocess
import sys
import time
from itertools import count

import pytest

from orchestrator.cluster import heartbeat
from tests.support.sweeps import REPO

STUCK = """
import signal, time
from orchestrator.cluster import heartbeat

signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a thread that waits in native code
with heartbeat.watched("it was lost", is_alive=lambda: False, every=0.05, patience=0.1, grace=0.2):
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


def test_a_cluster_that_answers_now_and_then_is_not_given_up():
    asked = count(1)
    n_asked = []

    def is_alive() -> bool:
        n_asked.append(next(asked))
        return n_asked[-1] % 3 == 0

    with heartbeat.watched("", is_alive=is_alive, every=0.01, patience=0.025, grace=60) as heart:
        while len(n_asked) < 30:
            time.sleep(0.01)
    assert not heart.lost


def test_a_process_that_does_not_listen_is_ended_with_its_last_words():
    done = subprocess.run([sys.executable, "-c", STUCK], cwd=REPO, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert done.stderr == "error: it was lost\n"
