"""Ctrl-C and SIGTERM in processes of their own: the first is heard in any moment and bounded, the next kills."""

import subprocess
import sys
import time

import pytest

from tests.support.sweeps import REPO

HEAD = """
import os, signal, time
from orchestrator.api.interrupts import ENDS_TUNE, ended_in_order

def tell(number):
    os.kill(os.getpid(), number)

def killed():
    os._exit(130)
"""


def run(body: str, timeout: float = 60) -> tuple[subprocess.CompletedProcess[str], float]:
    """A process that does so, and the seconds it took."""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HEAD + body], cwd=REPO, capture_output=True, text=True, timeout=timeout
    )
    return done, time.monotonic() - begin


STUCK = """
signal.signal(ENDS_TUNE, lambda *_: None)  # as Tune's, while its step waits for an answer that never comes
with ended_in_order(killed, patience=0.3) as interrupts:
    interrupts.begin()
    tell(signal.{number})
    time.sleep(50)
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_tasks_that_are_not_given_up_hold_the_end_no_longer_than_the_patience(number):
    done, seconds = run(STUCK.format(number=number))
    assert done.returncode == 130, done.stderr
    assert seconds < 30
    assert "killed" in done.stderr.splitlines()[-1]


RAISED = """
signal.signal(ENDS_TUNE, lambda *_: None)
try:
    with ended_in_order(patience=0.3) as interrupts:
        interrupts.begin()
        tell(signal.SIGINT)
        time.sleep(50)
except KeyboardInterrupt:
    print("raised")
"""


def test_from_python_what_is_not_given_up_raises_a_keyboard_interrupt_and_the_process_lives():
    done, seconds = run(RAISED)
    assert (done.returncode, done.stdout) == (0, "raised\n"), done.stderr
    assert seconds < 30


WRITING = """
with ended_in_order(killed, patience=0.1) as interrupts:
    interrupts.begin()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # as Ray does when it is left
    interrupts.tasks_ended()
    assert not interrupts.asked()
    tell(signal.{number})
    time.sleep(1)
    assert interrupts.asked()
    print("written", flush=True)
    tell(signal.{number})
    print("never said", flush=True)
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_while_files_are_written_the_first_ends_nothing_and_the_second_kills(number):
    done, _ = run(WRITING.format(number=number))
    assert (done.returncode, done.stdout) == (130, "written\n"), done.stderr
    assert "is brought to an end soon" in done.stderr


UNHEARD = """
import logging

class Broken(logging.Handler):
    def emit(self, record):
        raise {error}

logging.getLogger("orchestrator").addHandler(Broken())
heard = []
signal.signal(ENDS_TUNE, lambda *_: heard.append("told"))
with ended_in_order(killed) as interrupts:
    interrupts.begin()
    tell(signal.SIGINT)
    print(*heard)
"""


@pytest.mark.parametrize("error", ["BrokenPipeError", "RuntimeError('reentrant call inside <_io.BufferedWriter>')"])
def test_tune_is_told_also_where_nothing_can_be_said(error):
    done, _ = run(UNHEARD.format(error=error))
    assert (done.returncode, done.stdout) == (0, "told\n"), done.stderr


AFTER = """
signal.signal(signal.SIGINT, signal.default_int_handler)
before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, ENDS_TUNE)]
with ended_in_order(killed) as interrupts:
    interrupts.begin()
    signal.signal(ENDS_TUNE, lambda *_: None)  # Tune leaves its own behind
assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, ENDS_TUNE)] == before
with ended_in_order(killed) as interrupts:
    interrupts.begin()
    try:
        tell(signal.SIGINT)
        time.sleep(50)
    except KeyboardInterrupt:
        print("raised")
"""


def test_a_second_sweep_of_one_process_hears_ctrl_c_before_its_tune_runs():
    done, _ = run(AFTER)
    assert (done.returncode, done.stdout) == (0, "raised\n"), done.stderr
