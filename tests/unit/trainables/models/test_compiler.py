"""What compiles ahead does each job once, goes on after one that fails, and rests when it is asked to."""

import subprocess
import sys
from threading import Event
from time import sleep

import torch

from trainables.models import compile_ahead
from trainables.models.chunked_loss import aligned_logits
from trainables.models.compiler import MAX_THREADS, Compiler
from trainables.models.families.gpt2 import HUB_SHAPES


def test_each_job_is_done_once_also_after_one_that_fails():
    done = []

    def job(n: int):
        done.append(n)
        if n % 2:
            raise RuntimeError("a compiler's fault")

    Compiler(lambda n=n: job(n) for n in range(6)).wait()
    assert sorted(done) == list(range(6))


def test_a_job_that_ends_its_thread_does_not_keep_others_waiting():
    compiler = Compiler([sys.exit, *[lambda: None] * 5])
    compiler.wait()
    with compiler.resting():
        assert compiler._n_at_work == 0


def test_while_it_rests_no_job_is_at_work_and_afterwards_all_are_done():
    done, at_work, go = [], Event(), Event()

    def first():
        at_work.set()
        go.wait()
        done.append("first")

    def later():
        sleep(0.02)
        done.append("later")

    compiler = Compiler([first, *[later] * 60])
    at_work.wait()
    go.set()
    with compiler.resting():
        before = list(done)
        assert "first" in before, "it was at work: resting begins when it has ended"
        sleep(0.1)
        assert done == before
    compiler.wait()
    assert len(done) == 61


def test_it_rests_after_the_jobs_at_work_and_not_after_those_that_wait():
    done = []
    compiler = Compiler([lambda: (sleep(0.02), done.append(None))] * 100)
    sleep(0.1)
    before = len(done)
    with compiler.resting():
        assert len(done) - before <= 2 * MAX_THREADS
    compiler.wait()


def test_a_process_that_ends_waits_for_no_more_than_the_jobs_at_work():
    script = (
        "import time; from trainables.models.compiler import Compiler; "
        "Compiler([lambda: time.sleep(0.2)] * 300); print('the end')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, "the end\n", "")


def test_the_columns_that_kernels_are_compiled_for_are_those_of_the_default_bases_logits():
    head = torch.zeros(HUB_SHAPES["gpt2-medium"].vocab_size, 2)
    assert aligned_logits(torch.zeros(1, 2), head).shape == (1, compile_ahead.USUAL_COLUMNS)
