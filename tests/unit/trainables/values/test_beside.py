"""Work beside other work: what it came to, what it raised, and what outlives its thread."""

import ctypes
import signal
import subprocess
import sys
import threading

import pytest

from trainables.values.beside import Beside

PR_SET_PDEATHSIG = 1


def test_work_begins_at_once_and_its_result_is_waited_for():
    gate, begun = threading.Event(), threading.Event()

    def work() -> int:
        begun.set()
        gate.wait()
        return 3

    beside = Beside(work)
    begun.wait()
    assert not beside.is_over
    gate.set()
    assert (beside.result(), beside.is_over) == (3, True)


def test_what_the_work_raised_is_raised_where_its_result_is_asked_for():
    beside = Beside(lambda: [][0])
    for _ in range(2):
        with pytest.raises(IndexError):
            beside.result()
    assert beside.is_over


def test_a_process_ends_without_waiting_for_its_work():
    program = "import threading; from trainables.values.beside import Beside; Beside(threading.Event().wait)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.skipif(sys.platform != "linux", reason="a child that asks to die with its parent is Linux's")
def test_a_child_that_dies_with_its_parent_lives_on_after_the_work_only_where_the_thread_stays():
    def child() -> subprocess.Popen[bytes]:
        prctl = ctypes.CDLL(None).prctl
        return subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )

    stays, goes = Beside(child, stays=True).result(), Beside(child).result()
    assert goes.wait(60) == -signal.SIGKILL
    stays.communicate(timeout=60)
    assert stays.returncode == 0, "it was ended before it was told to"
