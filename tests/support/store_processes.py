"""Processes that make MLflow's store at once, or die while they make it.

`python tests/support/store_processes.py WHAT FOLDER ROUNDS`

A process of its own imports MLflow once and forks, so that all begin in the same moment.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from mlflow import MlflowClient

from orchestrator.tracking.client import open_client
from orchestrator.tracking.store import EXPERIMENT, store_uri

N_AT_ONCE = 6


def forked(root: Path, start_at: float) -> int:
    """A process that opens the store at a moment and writes a run; its exit code is 0 where that went well."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        time.sleep(max(0.0, start_at - time.time()))
        client, experiment_id = open_client(store_uri(root), root)
        run_id = client.create_run(experiment_id).info.run_id
        client.log_metric(run_id, "one", 1.0)
        code = 0
    finally:
        os._exit(code)


def sound(root: Path, n_runs: int) -> str:
    """What the store came to; empty where it holds our experiment once, with so many runs."""
    client = MlflowClient(store_uri(root))
    names = [found.name for found in client.search_experiments()]
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    left = [path.name for path in root.glob("*.new*")]
    if names.count(EXPERIMENT) == 1 and len(runs) == n_runs and not left:
        return ""
    return f"{names}, {len(runs)} runs, left over: {left}"


def at_once(folder: Path, n_rounds: int) -> str:
    """N_AT_ONCE processes on a store that is not there, in rounds; empty where none broke it."""
    for number in range(n_rounds):
        root = folder / f"at-once-{number}"
        pids = [forked(root, time.time() + 0.2) for _ in range(N_AT_ONCE)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        fault = sound(root, N_AT_ONCE) if not any(codes) else f"exit codes {codes}"
        if fault:
            return f"round {number}: {fault}"
    return ""


def killed(folder: Path, n_rounds: int) -> str:
    """A process killed while it makes the store, then one that is left alone; empty where that one always could."""
    random.seed(0)
    for number in range(n_rounds):
        root = folder / f"killed-{number}"
        pid = forked(root, 0.0)
        time.sleep(random.uniform(0.05, 1.0))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        done = int((root / "mlflow.db").exists() and sound(root, 1) == "")
        code = os.waitstatus_to_exitcode(os.waitpid(forked(root, 0.0), 0)[1])
        fault = sound(root, done + 1) if code == 0 else f"exit code {code}"
        if fault:
            return f"round {number}: {fault}"
    return ""


if __name__ == "__main__":
    fault = {"at_once": at_once, "killed": killed}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
    sys.exit(fault or 0)
