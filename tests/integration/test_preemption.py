"""Nodes come and go while a sweep runs: nothing is lost, and what is up works."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from orchestrator.analysis.budgets import FINISHED
from orchestrator.cluster import nodes
from orchestrator.cluster.ray_cluster import SLOTS_SECONDS
from orchestrator.driver import sweep
from orchestrator.ledger import Ledger
from orchestrator.settings import sweep_folder
from orchestrator.tracking.publishing import publish
from orchestrator.verify import checks as verify
from orchestrator.workers import versions
from tests.support.clusters import Slow, add_node, joined_cluster
from tests.support.stores import place_store
from tests.support.sweeps import REPO, make, space
from trainables.values.results import TrialResult

Due = Callable[[int], bool]
"""Whether the next node is to go, after so many have gone."""
RANKS = {"rank": {"values": [1, 2, 4, 8]}, "precision": {"values": ["16bit"]}}
RATES = {"learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2}}


@contextmanager
def churn(found: Cluster, n_nodes: int, due: Due, hold: Path) -> Iterator[list[tuple[float, int]]]:
    """Take the oldest node away without a word and add a new one, again and again; yields (moment, nodes up).

    Args:
        hold: a file that is there from when a node goes until the new one has come.
    """
    stop, up = threading.Event(), [(time.time(), n_nodes)]
    order = list(found.worker_nodes)
    found._shutdown_at_exit = False  # only the main thread may set signal handlers; the cluster's end ends these too

    def change() -> None:
        n_gone = 0
        while not stop.wait(0.2):
            if due(n_gone):
                n_gone += 1
                hold.touch()
                found.remove_node(order.pop(0), allow_graceful=False)
                up.append((time.time(), n_nodes - 1))
                order.append(add_node(found))
                up.append((time.time(), n_nodes))
                hold.unlink()

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    try:
        yield up
    finally:
        stop.set()
        thread.join()


def trials_in(folder: Path) -> list[TrialResult]:
    if not (folder / "ledger.db").is_file():
        return []
    ledger = Ledger(folder / "ledger.db", read_only=True)
    try:
        return ledger.trials()
    finally:
        ledger.close()


def node_seconds(up: list[tuple[float, int]], begin: float, end: float) -> float:
    """Seconds that nodes were up, summed over them."""
    marks = [*up, (end, 0)]
    return sum(n * max(0.0, min(later, end) - max(at, begin)) for (at, n), (later, _) in pairwise(marks))


def check(root: Path, n_nodes: int, n_trials: int, due: Callable[[Path], Due]) -> float:
    """Run a sweep while nodes come and go; nothing may be lost. Returns the busy share of the nodes that were up."""
    with joined_cluster(*[1] * n_nodes) as found:
        searched = space(method="random", parameters=RATES, fixed={"rank": 2, "alpha": 8, "precision": "16bit"})
        asked = make(searched, address=found.address, insecure=True, n_trials=n_trials, reuse=False, max_steps=8)
        folder = sweep_folder(asked.name, root)
        place_store(root)
        first_nodes = {node.node_id for node in found.worker_nodes}
        with churn(found, n_nodes, due(folder), root.with_name("hold")) as up:
            result = sweep.run(asked, root, resume=False, started=lambda *_: None, trainable=Slow)
    trials, n_gone = trials_in(folder), len(up) // 2
    assert not result.interrupted
    assert {t.state for t in trials} == {"completed"}, [t.reason for t in trials if t.state != "completed"]
    assert len(trials) == n_trials
    ledger = Ledger(folder / "ledger.db", read_only=True)
    assert ledger.fact(FINISHED)
    ledger.close()
    assert n_gone >= 2, "no node went away while the sweep ran: nothing was tried"
    assert {trial.environment["node"] for trial in trials} - first_nodes, "no new node took a trial"
    assert publish(asked, root, interrupted=False)
    assert not verify.run(asked.name, root, repair=False).differences
    first, last = min(t.started_at for t in trials), max(t.ended_at for t in trials)
    worked, whole = n_trials * 4 * Slow.seconds_per_rung, node_seconds(up, first, last)
    print(
        f"{n_gone} nodes gone and as many new in {last - first:.0f} s; {n_trials} trials, none lost; "
        f"busy {worked:.0f} of {whole:.0f} node-seconds: {worked / whole:.0%}"
    )
    return worked / whole


def test_no_trial_is_lost_while_nodes_come_and_go(tmp_path, monkeypatch):
    """A node goes each time that so many more trials have ended, and none ends until another has come in its place."""
    monkeypatch.setenv("HOLD", str(tmp_path / "hold"))

    def after_every_third(folder: Path) -> Due:
        return lambda n_gone: sum(t.state == "completed" for t in trials_in(folder)) >= 3 * (n_gone + 1)

    check(tmp_path / "mlflow_runs", n_nodes=2, n_trials=9, due=after_every_third)


@pytest.mark.slow
def test_nodes_that_are_up_are_busy_while_one_goes_and_one_comes_every_20_seconds(tmp_path):
    def every_20_seconds(folder: Path) -> Due:
        begun: list[float] = []

        def due(n_gone: int) -> bool:
            if not begun and trials_in(folder):
                begun.append(time.time())
            return bool(begun) and n_gone < 9 and time.time() >= begun[0] + 20 * (n_gone + 1)

        return due

    busy = check(tmp_path / "mlflow_runs", n_nodes=4, n_trials=340, due=every_20_seconds)
    assert busy >= 0.8


def with_another_torch(folder: Path) -> dict[str, str]:
    """Variables of a node on which PyTorch says that it is 1.2.3."""
    (folder / "torch-1.2.3.dist-info").mkdir()
    (folder / "torch-1.2.3.dist-info" / "METADATA").write_text("Name: torch\nVersion: 1.2.3\n")
    return {"PYTHONPATH": f"{folder}:{REPO}"}


@pytest.mark.slow  # test_cluster.py asks what its parts do
def test_a_node_of_another_torch_that_joins_a_running_sweep_is_named_and_gets_no_trial(tmp_path, caplog, monkeypatch):
    """One node trains; the other, which joins at the first trial, would train half of the rest.

    The first trial does not end before the other node has answered a question of its own, and the driver asked it.
    """
    root, odd, hold = tmp_path / "mlflow_runs", [], tmp_path / "hold"
    hold.touch()
    monkeypatch.setenv("HOLD", str(hold))
    with joined_cluster(1) as found:
        found._shutdown_at_exit = False  # only the main thread may set signal handlers

        def join_later() -> None:
            while not (root / "sweeps" / "t" / "ledger.db").exists():
                time.sleep(0.2)
            odd.append(add_node(found, num_cpus=4, env_vars=with_another_torch(tmp_path)))
            try:
                (node,) = (node for node in versions.alive() if node["NodeID"] == odd[0].node_id)
                ray.get(nodes.ask_versions(node))
                time.sleep(2 * SLOTS_SECONDS)
            finally:
                hold.unlink()

        thread = threading.Thread(target=join_later, daemon=True)
        thread.start()
        asked = make(space(parameters=RANKS), address=found.address, insecure=True, reuse=False)
        result = sweep.run(asked, root, resume=False, started=lambda *_: None, trainable=Slow)
        thread.join()
    assert [trial.state for trial in result.trials] == ["completed"] * 4, [trial.reason for trial in result.trials]
    assert odd[0].node_id not in {trial.environment["node"] for trial in result.trials}
    said = caplog.text
    assert said.count(odd[0].node_id[:8]) == 1, said
    assert f"{odd[0].node_id[:8]}) has torch 1.2.3, the driver has 2." in said
    assert "no trial goes there. Trials of one sweep must run the same code" in said
