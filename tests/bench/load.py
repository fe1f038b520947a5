"""Ten thousand recorded trials in one ledger: what reading them costs. `make bench ARGS=load`

python tests/bench/load.py --trials 10000 [--mlflow]

Writes a finished sweep over the pareto space (of five trials two are completed pairs, one was pruned), its adapters,
front.json and trials.parquet, then runs `status`, `report` and `verify` over it as processes of their own and takes
their wall time and the peak of their memory. MLflow's runs, which take far longer to write, are written only when
asked for; without them `verify` says that they are missing. Prints a table and, as its last line, one JSON
object; needs no GPU.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

import search_spaces
from orchestrator import settings as settings_file
from orchestrator.analysis.budgets import ENDED, FINISHED
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.ledger import Ledger, adapter_store
from orchestrator.report import outputs
from orchestrator.settings import SweepSettings, stored
from orchestrator.tracking.publishing import publish
from tests.bench.overhead import fake_comparison, fake_loss_nats
from trainables.values.config import TrialConfig, rungs
from trainables.values.errors import ConfigError, SweepError
from trainables.values.results import Cost, Measurement
from trainables.values.workload import Workload

NAME = "load"
LIMIT_SECONDS, LIMIT_MIB = 10.0, 1024.0
"""What each command may take over 10,000 trials."""
COMMANDS = ("status", "report", "verify")
WORKLOAD = Workload(
    base_model="demo",
    base_folder="/nowhere",
    base_fingerprint="f" * 64,
    weights="demo",
    data="demo",
    data_folder="/nowhere",
    data_digest="d" * 64,
    compute_dtype="float32",
)


def settings_of(n_trials: int) -> SweepSettings:
    """Of a sweep that came to about so many trials, baselines counted."""
    space = search_spaces.load("pareto")
    searched = max(5, round(n_trials * 3 / 5))
    return settings_file.make(
        name=NAME, space=space, n_trials=searched, base_model="demo", data="demo", device="cpu", seed=0
    )


def configs(settings: SweepSettings) -> Iterator[tuple[dict[str, Any], TrialConfig]]:
    """Distinct points of the space, every one at 4 bits."""
    draw, space = np.random.default_rng(0), settings.space
    while True:
        point = {name: parameter.samples[draw.integers(len(parameter.samples))] for name, parameter in _searched(space)}
        point |= {"precision": "nf4", "learning_rate": float(np.exp(draw.uniform(np.log(5e-5), np.log(2e-3))))}
        yield point, settings.config(point)


def _searched(space: search_spaces.Space) -> Any:
    return space.parameters.items()


def cost_of(config: TrialConfig) -> Cost:
    """The same for one cost key."""
    n = int(sha256(config.cost_key.encode()).hexdigest()[:4], 16)
    times = {"seconds_per_step": 0.01 + n * 1e-7, "seconds_per_step_p10": 0.01, "seconds_per_step_p90": 0.02}
    memory = {"peak_memory_mib": 1000.0 + n / 100, "reserved_memory_mib": 1100.0 + n / 100}
    return Cost(**times, **memory, tokens_per_second=1e5, device="none")


def write_adapter(folder: Path, weights: bytes) -> str:
    """As adapter_store.write does, but for the waiting on the disk; returns the weights' SHA-256."""
    folder.mkdir(parents=True)
    digest = sha256(weights).hexdigest()
    (folder / adapter_store.WEIGHTS).write_bytes(weights)
    (folder / adapter_store.CHECKSUMS).write_text(f"{digest}  {adapter_store.WEIGHTS}\n")
    return digest


def record(ledger: Ledger, adapters: Path, config: TrialConfig, params: dict[str, Any], origin: Any, state: Any) -> str:
    """One trial from its beginning to its end."""
    key = WORKLOAD.key(config)
    ledger.add(key, config, params=params, origin=origin)
    ledger.start(key)
    ledger.keep_cost(config.cost_key, cost_of(config))
    for rung in rungs(config.max_steps)[: None if state == "completed" else 1]:
        loss = fake_loss_nats(key) + 1 / rung
        ledger.record(key, Measurement(step=rung, train_loss_nats=loss, eval_loss_nats=loss))
    digest = write_adapter(adapters / key, key.encode()) if state == "completed" else None
    reason = None if state == "completed" else "hypervolume: would add too little"
    environment = {"compute_dtype": "float32", "weights": "demo"}
    ledger.finish(key, state, reason=reason, environment=environment, adapter_sha256=digest, train_seconds=1.0)
    return key


def write(root: Path, n_trials: int) -> tuple[SweepSettings, int]:
    """A finished sweep; returns its settings and how many trials it came to."""
    settings = settings_of(n_trials)
    folder = settings_file.sweep_folder(NAME, root)
    stored.save(settings, folder)
    ledger = Ledger(folder / "ledger.db")
    ledger._db.execute("PRAGMA synchronous = OFF")  # the writing is not what is measured
    facts = {"id": "load", "created_at": 1.0, "workload": asdict(WORKLOAD), "data_counts": {}, FINISHED: True}
    for name, value in (facts | {ENDED: {"why": "trials", "text": "all were taken up"}}).items():
        ledger.set_fact(name, value)
    n = 0
    for i, (params, config) in zip(range(settings.n_trials), configs(settings), strict=False):
        state = "pruned" if i % 3 == 2 else "completed"
        key = record(ledger, folder / "adapters", config, params, "search", state)
        n += 1
        if state == "completed":
            baseline = {**params, "precision": "16bit"}
            record(ledger, folder / "adapters", config.at_other_precision, baseline, "baseline", "completed")
            comparison = fake_comparison()
            quantized = replace(comparison.quantized, n_rows=128)
            ledger.set_similarity(key, replace(comparison, quantized=quantized))
            n += 1
    outputs.write_data(SweepSnapshot.of(settings, ledger), folder)
    ledger.close()
    return settings, n


def timed(command: str, folder: Path) -> dict[str, Any]:
    """Wall seconds, peak memory and the exit code of one command in a process of its own."""
    repo = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(repo), "CUDA_VISIBLE_DEVICES": ""}
    start = perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", command, NAME, "--json"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "command": command,
        "seconds": perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
        "exit_code": process.returncode,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 1 where a command takes more than it may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000, help="recorded, about so many; baselines counted")
    parser.add_argument("--mlflow", action="store_true", help="write MLflow's runs too")
    given = parser.parse_args(arguments)
    try:
        if given.trials < 10:
            raise ConfigError(f"trials must be at least 10, got {given.trials}")
        with TemporaryDirectory(prefix="qlora-sweep-") as name:
            folder = Path(name)
            root = folder / settings_file.ROOT
            settings, n = write(root, given.trials)
            if given.mlflow:
                publish(settings, root, interrupted=False)
            found = [timed(command, folder) for command in COMMANDS]
    except SweepError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{n} recorded trials; at most {LIMIT_SECONDS:g} s and {LIMIT_MIB:g} MiB each for 10,000")
    print(f"{'command':<10}{'seconds':>10}{'of CPU':>10}{'peak MiB':>10}{'exit code':>11}")
    for each in found:
        figures = (each["seconds"], each["cpu_seconds"], each["peak_mib"])
        print(f"{each['command']:<10}" + "".join(f"{value:10.1f}" for value in figures) + f"{each['exit_code']:11}")
    print(json.dumps({"n_trials": n, "mlflow": given.mlflow, "commands": found}))
    return int(any(each["seconds"] > LIMIT_SECONDS or each["peak_mib"] > LIMIT_MIB for each in found))


if __name__ == "__main__":
    sys.exit(main())
