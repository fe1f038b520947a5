"""A Ray cluster of several nodes on this machine, and a worker that trains nothing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from time import sleep
from typing import Any

import ray
from ray import tune
from ray._private.node import Node
from ray.cluster_utils import Cluster

from orchestrator.cluster import private_ray, ray_cluster
from orchestrator.ledger.adapter_store import WEIGHTS
from orchestrator.ledger.task import Task, TaskReport
from orchestrator.security import ray_guard
from orchestrator.workers import node_inputs
from orchestrator.workers.versions import refuse_here
from trainables.values.config import rungs
from trainables.values.errors import Unreachable
from trainables.values.findings import TestEvaluation
from trainables.values.results import Cost, Measurement
from trainables.values.workload import Workload

NICENESS = "RAY_worker_niceness"


def reports_of(task: Task) -> Iterator[TaskReport]:
    """What a worker says of a task that goes well; made here, so that workers import little."""
    if task.kind != "train":
        test_evaluation = TestEvaluation(row_nats=(2.0, 4.0), row_tokens=(1, 2), untuned_row_nats=(4.0, 8.0))
        yield TaskReport(state="completed", test_evaluation=test_evaluation)
        return
    figures = {name: 1.0 for name in Cost.__dataclass_fields__ if name not in ("device", "breakdown")}
    for rung in rungs(task.config.max_steps):
        measurement = Measurement(step=rung, train_loss_nats=2.0, eval_loss_nats=2.0)
        shown = {"measurement": measurement, "cost": Cost(**figures, device="CPU")}
        if rung < task.config.max_steps:
            yield TaskReport(state="running", **shown)
    yield TaskReport(state="completed", train_seconds=1.0, adapter={WEIGHTS: task.key.encode()}, **shown)


@contextmanager
def cluster(**head: Any) -> Iterator[Cluster]:
    """A cluster whose head runs no trials; it says nothing to the Ray of others on this machine."""
    before = os.environ.get("RAY_TMPDIR")
    folder = Path(mkdtemp(prefix="r", dir="/tmp"))  # short: sockets lie under it
    (folder / "ray").mkdir()
    os.environ["RAY_TMPDIR"] = str(folder)
    os.environ.setdefault(NICENESS, private_ray.VARIABLES[NICENESS])  # nodes read it as they start
    os.environ.pop(ray_guard.LOOPBACK, None)  # a private Ray of this process may have set it
    ray_guard._read_environment_again(is_private=False)
    found = Cluster()
    try:
        add_node(found, num_cpus=0, include_dashboard=False, **head)
        yield found
    finally:
        ray.shutdown()
        found.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop("RAY_TMPDIR")
        if before is not None:
            os.environ["RAY_TMPDIR"] = before


@contextmanager
def joined_cluster(*n_cpus: int) -> Iterator[Cluster]:
    """The same with a node of so many CPUs each; this process is its driver."""
    with cluster() as found:
        for n in n_cpus:
            add_node(found, num_cpus=n)
        join(found)
        yield found


def add_node(found: Cluster, **resources: Any) -> Node:
    """One more node; Ray gives a node 30 s to start, which a machine that is busy may need more than once."""
    for attempt in range(3):
        try:
            return found.add_node(**{"num_cpus": 1, **resources})
        except Exception:  # Ray raises no kind of its own here
            if attempt == 2:
                raise
    raise AssertionError


def join(found: Cluster) -> None:
    """Have this process drive a cluster; a machine that is busy may not answer within the seconds that a user waits."""
    for attempt in range(5):
        try:
            ray_cluster.connect(found.address, insecure=True)
            return
        except Unreachable:
            if attempt == 4:
                raise


class Sleeper(tune.Trainable):
    """Takes tasks as SweepTrainable does, brings the inputs to its node, and sleeps where that trains.

    Its environment says on which node it ran, and from which folder it would have loaded the base.
    """

    seconds_per_rung = 0.0

    def setup(self, config: dict[str, Any]) -> None:
        refuse_here(config.get("versions"))
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        task = new_config["task"]
        workload = node_inputs.here(Workload(**new_config["workload"]), new_config["inputs"])
        self._facts = {"node": ray.get_runtime_context().get_node_id(), "base_folder": workload.base_folder}
        self._reports = reports_of(task)
        return True

    def step(self) -> dict[str, Any]:
        sleep(self.seconds_per_rung)
        report = next(self._reports)
        if report.is_last:
            report = replace(report, environment=self._facts)
        return {"report": report, "done": report.is_last}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing; without this method Tune would not reuse the worker."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing."""


class Slow(Sleeper):
    """A trial of four rungs takes 2 s: short beside the time that a node stays, as in a real sweep.

    Where a node's variable HOLD names a file that exists, no rung ends there.
    """

    seconds_per_rung = 0.5

    def step(self) -> dict[str, Any]:
        while os.path.exists(os.environ.get("HOLD", "")):
            sleep(0.1)
        return super().step()


class Late(Sleeper):
    """Takes longer to start than a trial does; its environment says which process it is."""

    seconds_per_rung = 0.2

    def setup(self, config: dict[str, Any]) -> None:
        sleep(4.0)
        super().setup(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        super().reset_config(new_config)
        self._facts |= {"worker": str(os.getpid())}
        return True
