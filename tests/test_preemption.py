"""Nodes come and go while a sweep runs: nothing is lost, and what is up works."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
from ray.cluster_utils import Cluster

from orchestrator import ray_cluster, sweep, verify
from orchestrator.budgets import FINISHED
from orchestrator.ledger import Ledger
from orchestrator.publishing import publish
from orchestrator.settings import sweep_folder
from tests.clusters import Slow, cluster
from tests.sweeps import make, space

N_NODES = 4


@contextmanager
def churn(found: Cluster, begun: threading.Event, seconds: float) -> Iterator[list[tuple[float, int]]]:
    """From a moment on, every so many seconds, take the oldest node away without a word and add a new one.

    Yields the nodes that are up, as (time, how many).
    """
    stop, up = threading.Event(), [(time.time(), N_NODES)]
    order = list(found.worker_nodes)
    found._shutdown_at_exit = False  # only the main thread may set signal handlers; the cluster's end ends these too

    def change() -> None:
        begun.wait()
        while not stop.wait(seconds):
            found.remove_node(order.pop(0), allow_graceful=False)
            up.append((time.time(), N_NODES - 1))
            order.append(found.add_node(num_cpus=1))
            up.append((time.time(), N_NODES))

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    try:
        yield up
    finally:
        stop.set()
        begun.set()
        thread.join()


def node_seconds(up: list[tuple[float, int]], begin: float, end: float) -> float:
    """Seconds that nodes were up, summed over them."""
    marks = [(max(at, begin), n) for at, n in up] + [(end, 0)]
    return sum(n * max(0.0, min(later, end) - at) for (at, n), (later, _) in pairwise(marks))


@pytest.mark.parametrize(("n_trials", "every_seconds"), [(48, 9.0), pytest.param(300, 20.0, marks=pytest.mark.slow)])
def test_no_trial_is_lost_while_nodes_come_and_go(n_trials, every_seconds, tmp_path, capsys):
    root = tmp_path / "mlflow_runs"
    rates = {"learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2}}
    searched = space(method="random", parameters=rates, fixed={"rank": 2, "alpha": 8, "precision": "16bit"})
    with cluster() as found:
        for _ in range(N_NODES):
            found.add_node(num_cpus=1)
        ray_cluster.connect(found.address)
        asked = make(searched, address=found.address, n_trials=n_trials, reuse=False, max_steps=8)
        begun = threading.Event()
        with churn(found, begun, every_seconds) as up:
            result = sweep.run(asked, root, resume=False, started=lambda *_: begun.set(), trainable=Slow)
    ledger = Ledger(sweep_folder(asked.name, root) / "ledger.db", read_only=True)
    trials, finished = ledger.trials(), ledger.fact(FINISHED)
    ledger.close()
    completed = [trial for trial in trials if trial.state == "completed"]
    n_changes = (len(up) - 1) // 2
    first = min(trial.started_at for trial in trials)
    last = max(trial.ended_at for trial in trials)
    worked = len(completed) * 4 * Slow.seconds_per_rung
    whole = node_seconds(up, first, last)
    print(
        f"{n_changes} nodes taken away and added in {last - first:.0f} s; {len(completed)} of {n_trials} trials; "
        f"busy {worked:.0f} of {whole:.0f} node-seconds: {worked / whole:.0%}"
    )
    assert n_changes >= 2, "no node went away while the sweep ran: nothing was tried"
    assert finished
    assert len(trials) == n_trials
    assert {trial.state for trial in trials} == {"completed"}, [t.reason for t in trials if t.state != "completed"]
    assert len({trial.environment["node"] for trial in completed}) > N_NODES, "new nodes took trials too"
    assert not result.interrupted
    assert publish(asked, root, print, interrupted=False)
    found = verify.run(asked.name, root, print, repair=False)
    assert not found.differences
