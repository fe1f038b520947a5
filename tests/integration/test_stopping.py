"""The stopping rule in a sweep by real Ray Tune, and what stands on the screen when its last task has ended."""

import os
import subprocess
import sys

import ray

from orchestrator.driver import sweep
from tests.faults.pretend import Worse, connected
from tests.support.sweeps import GRID, REPO, environment, make, space


def test_under_real_ray_tune_a_trial_s_end_is_known_to_the_rule_and_stops_others(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPO))  # of the workers
    ranks = {
        "parameters": {"rank": {"values": list(range(1, 13))}},
        "fixed": {"alpha": 8, "max_steps": 8, "precision": "nf4"},
    }
    asked = make(space(GRID | ranks, early_terminate={"type": "hypervolume"}), asynchronous=True)
    try:
        result = sweep.run(asked, tmp_path, resume=False, started=lambda *_: None, trainable=Worse, prepare=connected)
        niceness = ray.get(ray.remote(lambda: os.nice(0)).remote())
    finally:
        ray.shutdown()
    assert niceness == os.nice(0), "trials are behind what else runs on this machine"
    ended = {trial.config.rank: trial for trial in result.trials if trial.origin == "search"}
    assert ended[1].state == "completed", ended[1].reason
    assert len(ended) == 12
    stopped = [(len(trial.history), trial.reason) for _, trial in sorted(ended.items()) if trial.state == "pruned"]
    assert any(n == 4 and "its end" in reason for n, reason in stopped)
    assert stopped[-1][0] == 1
    assert "at step 1 its most hopeful end" in stopped[-1][1]


def test_the_answer_stands_on_the_screen_before_anything_is_written_and_each_phase_is_named(tmp_path):
    log = str(tmp_path / "log")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.pretend", "run", "a", "plain"],
        cwd=tmp_path,
        env=environment(PRETEND_LOG=log, PRETEND_SECONDS="0", PRETEND_TRIALS="2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # in the order in which both were printed
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    marks = ("Pareto front: ", "Answer: ", "writing figures", "writing MLflow", "report: ")
    found = [next(i for i, line in enumerate(done.stdout.splitlines()) if line.startswith(mark)) for mark in marks]
    assert found == sorted(found), done.stdout
