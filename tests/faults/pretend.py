"""Trials that only take time, under the real command, Ray Tune, ledger and MLflow: what faults are tried on.

python -m tests.faults.pretend run|resume NAME SPACE [ADDRESS]     in the folder that holds mlflow_runs/

Reads from the environment: PRETEND_LOG, a file to note each beginning in; PRETEND_SECONDS, of each rung;
PRETEND_TRIALS, configs to try; PRETEND_GATE, a file without which no trial goes beyond step 2, so that there is time
to do something to it there; PRETEND_BROKEN, a file with which every trial raises; PRETEND_TRACKING_URI, of MLflow.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import ray
import typer
from ray import tune

from orchestrator.cli.main import main as command
from orchestrator.cli.running import run_sweep
from orchestrator.cluster import ray_cluster
from orchestrator.driver.ready import Ready, SweepDevice
from orchestrator.ledger.task import Task, TaskReport
from orchestrator.settings import ROOT, SweepSettings, stored, sweep_folder
from tests.support.sweeps import GRID, WORKLOAD, completes, evaluated_on_test, make, similarity, space
from trainables.cost.device import device_name
from trainables.values.checkpoint import Checkpoint, EngineState

SPACES: dict[str, dict[str, Any]] = {
    "plain": {"parameters": {"rank": {"values": [1, 2, 4, 8]}, "alpha": {"values": [1, 2, 4, 8, 16]}}},
    "pairs": {"parameters": {"rank": {"values": [1, 2, 4]}, "precision": {"values": ["nf4", "16bit"]}}},
}
FIXED: dict[str, dict[str, Any]] = {
    "plain": {"precision": "16bit", "max_steps": 8},
    "pairs": {"alpha": 8, "max_steps": 8},
}


def settings_of(name: str, space_name: str, address: str | None = None) -> SweepSettings:
    """A grid without pruning, so that nothing but a fault makes a trial run twice."""
    n_trials = int(os.environ.get("PRETEND_TRIALS", "6"))
    chosen = space(GRID, name=space_name, fixed=FIXED[space_name], **SPACES[space_name])
    uri = os.environ.get("PRETEND_TRACKING_URI")
    return make(chosen, name=name, n_trials=n_trials, address=address, insecure=address is not None, tracking_uri=uri)


@contextmanager
def connected(settings: SweepSettings, root: Path) -> Iterator[Callable[[], Ready]]:
    """Ray, and inputs that are nowhere."""
    ray_cluster.connect(settings.address, insecure=settings.insecure)
    device = SweepDevice(names=frozenset({device_name("cpu")}), compute_dtype=WORKLOAD.compute_dtype)
    yield lambda: Ready(workload=WORKLOAD, counts={"read": 0, "train": 0}, device=device)


def note(event: str, **values: Any) -> None:
    """Append one line, whole."""
    line = json.dumps({"event": event, "at": time.monotonic(), "pid": os.getpid(), **values}) + "\n"
    with open(os.environ["PRETEND_LOG"], "ab", buffering=0) as file:
        file.write(line.encode())


def noted(log: Path) -> list[dict[str, Any]]:
    """What was noted, in order."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


class Pretend(tune.Trainable):
    """Takes tasks as SweepTrainable does, snapshots included."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._reports = self._work(new_config["task"], new_config["adapter_store"])
        return True

    def step(self) -> dict[str, Any]:
        report = next(self._reports)
        return {"report": report, "done": report.is_last}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing; without this method Tune would not reuse the worker."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing."""

    def _work(self, task: Task, store: Any) -> Iterator[TaskReport]:
        if task.kind == "evaluate":
            compared = similarity() if task.baseline_key else None
            yield TaskReport(state="completed", test_evaluation=evaluated_on_test(compared))
            return
        half = WORKLOAD.key(task.config.at_other_precision)
        pair = (task.key if task.config.precision == "nf4" else half, similarity())
        if task.kind == "compare":
            yield TaskReport(state="completed", similarity=pair)
            return
        if os.path.exists(os.environ.get("PRETEND_BROKEN", "")):
            raise RuntimeError("no driver for this GPU")
        before = ray.get(store.checkpoint.remote(task.key))
        done = before.step if before else 0
        note("begin", key=task.key, step=done, node=ray.get_runtime_context().get_node_id())
        for report in completes(task, loss=2 + int(sha256(task.key.encode()).hexdigest()[:6], 16) / 2**24):
            step = report.measurement.step
            if step > done:
                time.sleep(float(os.environ.get("PRETEND_SECONDS", "0.1")))
                if report.is_last and ray.get(store.read.remote(half)) is not None:
                    report = replace(report, similarity=pair)
                yield report
                ray.get(store.keep.remote(snapshot_at(task.key, step)))
            while step == 2 and not os.path.exists(os.environ.get("PRETEND_GATE", "/")):
                time.sleep(0.05)


class Worse(Pretend):
    """Trials whose loss is their rank; all cost the same, and none ends before the 4-bit one of rank 1 has."""

    def _work(self, task: Task, store: Any) -> Iterator[TaskReport]:
        if task.kind != "train":
            yield from super()._work(task, store)
            return
        first = WORKLOAD.key(replace(task.config, precision="nf4", rank=1, seed=0))
        for report in completes(task, loss=float(task.config.rank)):
            while report.is_last and task.key != first and ray.get(store.read.remote(first)) is None:
                time.sleep(0.05)
            if report.is_last and task.config.precision == "16bit":
                report = replace(report, similarity=(WORKLOAD.key(task.config.at_other_precision), similarity()))
            yield report


def snapshot_at(key: str, step: int) -> Checkpoint:
    """Of an adapter with one weight."""
    one = np.ones(1, dtype=np.float32)
    state = EngineState(
        weights=one, first_moments=one, second_moments=one, n_updates=step, n_bad_gradients=0, n_steps=step
    )
    return Checkpoint(key=key, step=step, seconds=0.0, engine=state)


def main() -> None:
    verb, name, space_name, *address = sys.argv[1:]
    resume = verb == "resume"

    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def work() -> None:
        if resume:
            settings = stored.load(sweep_folder(name, ROOT))
        else:
            settings = settings_of(name, space_name, *address)
        run_sweep(settings, resume=resume, as_json=False, trainable=Pretend, prepare=connected)

    command(lambda: app([]))


if __name__ == "__main__":
    main()
