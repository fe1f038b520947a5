"""The same command, the same answer: real trials under real Ray on a CPU, quiet, under load, and killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.private_ray import MAX_CPU_WORKERS
from orchestrator.driver.in_order import LAG, LAG_PER_WORKER
from orchestrator.ledger import Ledger
from tests.support.sweeps import command, start

SPACE = """
method: tpe
parameters:
  precision: {values: [nf4, 16bit]}
  rank: {values: [1, 2, 4, 8]}
  learning_rate: {distribution: log_uniform_values, min: 1.0e-5, max: 2.0e-2}
fixed: {alpha: 8, batch_size: 4, max_length_tokens: 64, max_steps: 8}
early_terminate: {type: hypervolume, min_gain: 0.02}
"""
N_WORKERS = min(len(os.sched_getaffinity(0)), MAX_CPU_WORKERS)
N_TRIALS = 2 * LAG_PER_WORKER * N_WORKERS + 4
"""So many that the last ones see enough results for some to be stopped."""
ASKED = ("run", "--space", "space.yaml", "--name", "a", "--trials", str(N_TRIALS), "--no-reuse", "--seed", "5")
PATIENCE_SECONDS = 1800
FEW = ("--verdict-seeds", "1", "--json")


def ledger_of(cwd: Path) -> Ledger:
    return Ledger(cwd / "mlflow_runs" / "sweeps" / "a" / "ledger.db", read_only=True)


def answer(cwd: Path) -> dict[str, Any]:
    """What a sweep came to, without times."""
    ledger = ledger_of(cwd)
    lag, trials = ledger.fact(LAG), ledger.trials()
    ledger.close()
    front = json.loads((cwd / "mlflow_runs" / "sweeps" / "a" / "front.json").read_text())
    chosen = command("best", "a", "--json", cwd=cwd).json
    return {
        "lag": lag,
        "trials": [(t.number, t.key, t.origin, t.state, t.reason) for t in trials],
        "losses": [[(m.step, m.train_loss_nats, m.eval_loss_nats) for m in t.history] for t in trials],
        "similarities": [t.similarity for t in trials],
        "front": front,
        "best": {name: chosen[name] for name in ("number", "key", "config", "why")},
    }


@contextmanager
def busy(n: int) -> Iterator[None]:
    """Other work on the machine."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def folder(tmp_path: Path, name: str) -> Path:
    cwd = tmp_path / name
    cwd.mkdir()
    (cwd / "space.yaml").write_text(SPACE)
    return cwd


def n_ended(cwd: Path) -> int:
    """Trials that came to their end."""
    if not (cwd / "mlflow_runs" / "sweeps" / "a" / "ledger.db").exists():
        return 0
    ledger = ledger_of(cwd)
    ended = sum(trial.ended_at is not None for trial in ledger.trials())
    ledger.close()
    return ended


def kill_after(cwd: Path, n_trials: int) -> None:
    """Run the sweep, and SIGKILL its driver once so many trials ended."""
    process = start(*ASKED, *FEW, cwd=cwd)
    end = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < end and n_ended(cwd) < n_trials:
        time.sleep(0.2)
    assert process.poll() is None, process.communicate()[1]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_the_same_command_brings_the_same_answer_under_load_and_over_a_kill_and_a_resume(tmp_path):
    quiet, loaded, killed = (folder(tmp_path, name) for name in ("quiet", "loaded", "killed"))
    first = command(*ASKED, *FEW, cwd=quiet, timeout=PATIENCE_SECONDS)
    assert first.code == 0, first.err
    with busy(3):
        second = command(*ASKED, *FEW, cwd=loaded, timeout=PATIENCE_SECONDS)
    assert second.code == 0, second.err
    kill_after(killed, 5)
    resumed = command("resume", "a", "--json", cwd=killed, timeout=PATIENCE_SECONDS)
    assert resumed.code == 0, resumed.err
    expected = answer(quiet)
    states = {state for _, _, _, state, _ in expected["trials"]}
    assert states >= {"completed", "pruned"}, "nothing was stopped, so that no order of ends could have shown"
    for cwd in (loaded, killed):
        found = answer(cwd)
        for part in expected:
            assert found[part] == expected[part], f"{cwd.name}: {part}"
