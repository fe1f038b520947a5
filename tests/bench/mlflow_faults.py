"""How much later a sweep ends over a store of MLflow's that is locked, away or silent: `make bench ARGS=mlflow-faults`

python tests/bench/mlflow_faults.py --trials 20 --steps 200

The same sweep of the demo over a sound store, twice, then over each fault; then `sync` over a sound store, and what
`verify` says of it. Prints a table and, as its last line, one JSON object; needs no GPU.
"""

import argparse
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

SPACE = """
method: random
parameters:
  rank: {{values: [1, 2, 4, 8]}}
  learning_rate: {{distribution: log_uniform_values, min: 1.0e-4, max: 1.0e-2}}
fixed: {{precision: 16bit, alpha: 8, batch_size: 4, max_length_tokens: 64, max_steps: {steps}}}
early_terminate: {{type: none}}
"""
LOCKED_SECONDS = 120.0
Fault = Callable[[Path, float], AbstractContextManager[str | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One sweep over one kind of store.

    Attributes:
        later_percent: than the second sweep over a sound store.
        pending: whether the command said that something was.
        whole: what `verify` came to after `sync`.
    """

    fault: str
    code: int
    seconds: float
    later_percent: float
    pending: bool
    whole: bool


@contextmanager
def sound(cwd: Path, seconds: float) -> Iterator[None]:
    yield None


@contextmanager
def locked(cwd: Path, seconds: float) -> Iterator[None]:
    """From its first moment for LOCKED_SECONDS, or the sweep's length where that is longer."""
    path, stop = cwd / "mlflow_runs" / "mlflow.db", threading.Event()

    def hold() -> None:
        while not path.exists() and not stop.wait(0.05):
            pass
        with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            stop.wait(max(LOCKED_SECONDS, 2 * seconds))

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield None
    finally:
        stop.set()
        thread.join()


@contextmanager
def absent(cwd: Path, seconds: float) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextmanager
def silent(cwd: Path, seconds: float) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def back_midway(cwd: Path, seconds: float) -> Iterator[str]:
    """MLflow's own server, started when half of the sweep's time has gone."""
    with absent(cwd, seconds) as address:
        stop, servers = threading.Event(), []

        def serve() -> None:
            if not stop.wait(seconds / 2):
                command = [sys.executable, "-m", "mlflow", "server", "--port", address.rpartition(":")[2]]
                command += ["--backend-store-uri", f"sqlite:///{cwd}/server.db", "--workers", "1"]
                quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
                servers.append(subprocess.Popen(command, cwd=cwd, env=environment, start_new_session=True, **quiet))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield address
        finally:
            stop.set()
            thread.join()
            for server in servers:
                os.killpg(server.pid, 9)
                server.wait()


FAULTS: Mapping[str, Fault] = {
    "sound": sound,
    "locked": locked,
    "absent": absent,
    "silent": silent,
    "back midway": back_midway,
}


def command(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *arguments], cwd=cwd, capture_output=True, text=True
    )


def measured(fault: str, folder: Path, n_trials: int, steps: int, sound_seconds: float | None) -> Ended:
    """One sweep, its sync and its verification, in a folder of their own."""
    cwd = folder / fault.replace(" ", "-")
    cwd.mkdir(exist_ok=True)
    (cwd / "space.yaml").write_text(SPACE.format(steps=steps))
    name = f"s{len(list((cwd / 'mlflow_runs' / 'sweeps').glob('*')))}"
    asked = ["run", "--space", "space.yaml", "--name", name, "--trials", str(n_trials), "--no-reuse"]
    with FAULTS[fault](cwd, sound_seconds or 0.0) as address:
        begin = time.perf_counter()
        done = command(cwd, *asked, *(["--tracking-uri", address] if address else []))
        seconds = time.perf_counter() - begin
    (cwd / "mlflow_runs" / "sweeps" / name / "tracking-address").unlink(missing_ok=True)
    synced = command(cwd, "sync", name)
    verified = command(cwd, "verify", name, "--json")
    if done.returncode or synced.returncode or verified.returncode:
        print(done.stderr[-500:], synced.stderr[-500:], verified.stdout[-500:], file=sys.stderr)
    later = 100 * (seconds / sound_seconds - 1) if sound_seconds else 0.0
    return Ended(
        fault=fault,
        code=done.returncode,
        seconds=seconds,
        later_percent=later,
        pending="complete it with" in done.stderr,
        whole=verified.returncode == 0,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20, help="so many that a sweep takes longer than LOCKED_SECONDS")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", choices=list(FAULTS), help="one fault, beside the sound store")
    given = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="qlora-sweep-") as folder:
        measured("sound", Path(folder), given.trials, given.steps, None)  # fills the caches
        first = measured("sound", Path(folder), given.trials, given.steps, None)
        chosen = [given.only] if given.only else [fault for fault in FAULTS if fault != "sound"]
        others = [measured(fault, Path(folder), given.trials, given.steps, first.seconds) for fault in chosen]
    print(f"{'store':14}{'exit code':>10}{'seconds':>10}{'later':>9}{'pending':>9}{'whole after sync':>18}")
    for one in (first, *others):
        marks = f"{'yes' if one.pending else 'no':>9}{'yes' if one.whole else 'no':>18}"
        print(f"{one.fault:14}{one.code:10}{one.seconds:10.1f}{one.later_percent:8.1f}%{marks}")
    print(json.dumps([asdict(one) for one in (first, *others)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
