"""How long a sweep takes from the command to its front, and what that time goes into: `make bench ARGS=time-to-answer`

python -m tests.bench time-to-answer [--other TREE] [--sweeps 1] [--at-once] [--peer-trials 2] [--] [flags of run]
python -m tests.bench time-to-answer --from FILE...

Each sweep is a command in a folder of its own, so that nothing is known from before. Those of this tree and of the
other take turns or, `--at-once`, run beside each other on two GPUs of one host, which they swap at each turn. A tree's
first sweep is cold: it finds none of its kernels compiled, the others do, and are shown apart. Two trees may search
otherwise, and train more or fewer trials: the time is said for each step, too. Beside them the floor of a first trial's
begin: `ray.init`, then the imports and the base of a worker, each in a fresh process. And what the peer
(tests/bench/peer.py) would need for as many trials, by its time for a few. The last line is one JSON object; what each
sweep came to is on standard error as soon as it has ended, a line each, from which `--from` makes the same table.
Without a GPU it is the demo.
"""

import argparse
import json
import os
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import nan
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, time
from typing import Any

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.analysis.timeline import lines as timeline_lines
from tests.bench.speed import absolute, peer_figures, peer_trial
from trainables.cost.device import count_gpus, device_name, native_dtype
from trainables.models import inputs
from trainables.values.config import TrialConfig
from trainables.values.workload import Workload

REPO = Path(__file__).resolve().parents[2]
NAME, FRONT = "timed", "Pareto front"
"""Of the sweep; begins the line of its output from which on the answer is read."""
BEGINS = ("capture", "cost key", "training")
"""Phases of a worker that are a trial's own."""
RAY = "import ray; ray.init(include_dashboard=False, log_to_driver=False)"
WORKER = """
import pickle, sys
from trainables.models import base_model
from trainables.worker_cache import WorkerCache
workload, device = pickle.loads(open(sys.argv[1], "rb").read())
base_model.load(workload, "16bit", device)
"""
FIGURES = {
    "command to front (s)": "answered",
    "command to end (s)": "ended",
    "first trial begins (s)": "first_begins",
    "first trial ends (s)": "first_ends",
    "last trial's end to front (s)": "last_to_front",
    "last trial's end to all (s)": "last_to_all",
    "trials": "n_trials",
    "of them stopped early": "n_pruned",
    "steps trained": "n_steps",
    "command to front, a step (ms)": "ms_per_step",
}

Times = Mapping[str, float]
Sweeps = Mapping[str, Sequence[Times]]
"""Of each tree, in their order: the first is cold."""


def sweep(tree: Path, flags: Sequence[str], folder: Path, variables: Mapping[str, str]) -> dict[str, float]:
    """One sweep of a tree's own program: seconds since the command.

    Args:
        variables: of its environment, beside those of this process.
    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "orchestrator.cli", "run", "--name", NAME, *flags]
    paths = {"PYTHONPATH": os.pathsep.join([str(tree), *sys.path[1:]]), "PYTHONUNBUFFERED": "1"}
    environment = {**os.environ, **paths, **variables}
    began, answered = time(), None
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout:
            if answered is None and line.startswith(FRONT):
                answered = time()
    if running.returncode or answered is None:
        raise subprocess.CalledProcessError(running.returncode, command)
    ended = time()
    rows, first, n_steps = trials_of(folder / "mlflow_runs" / "sweeps" / NAME / "ledger.db")
    last = max(end for _, end in rows)
    return {
        "answered": answered - began,
        "ended": ended - began,
        "first_begins": nan if first is None else first - began,
        "first_ends": min(end for _, end in rows) - began,
        "last_to_front": answered - last,
        "last_to_all": ended - last,
        "n_trials": len(rows),
        "n_pruned": sum(state == "pruned" for state, _ in rows),
        "n_steps": n_steps,
        "ms_per_step": 1000 * (answered - began) / n_steps,
    }


def trials_of(ledger: Path) -> tuple[list[tuple[str, float]], float | None, int]:
    """State and end of each trial; when a worker began the first, None where the ledger's version does not say; and the
    steps of all."""
    connection = sqlite3.connect(ledger)
    try:
        rows = connection.execute("SELECT state, ended_at FROM trials WHERE ended_at IS NOT NULL").fetchall()
        last = "SELECT max(step) AS step FROM measurements GROUP BY key"
        ((n_steps,),) = connection.execute(f"SELECT sum(step) FROM ({last})")
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'spans'").fetchone():
            return rows, None, n_steps
        marks = ", ".join("?" * len(BEGINS))
        ((first,),) = connection.execute(f"SELECT min(began) FROM spans WHERE phase IN ({marks})", BEGINS)
        return rows, first, n_steps
    finally:
        connection.close()


def seconds_of(*words: str) -> float:
    """Of a fresh Python."""
    begun = perf_counter()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    subprocess.run([sys.executable, "-c", *words], check=True, env=environment, capture_output=True)
    return perf_counter() - begun


def floor(workload: Workload, device: str, folder: Path) -> dict[str, float]:
    """Seconds of what a first trial cannot begin before."""
    path = folder / "workload.pickle"
    path.write_bytes(pickle.dumps((workload, device)))
    return {"ray": seconds_of(RAY), "worker": seconds_of(WORKER, str(path))}


def peer(workload: Workload, rows: str, n_trials: int) -> dict[str, Any] | None:
    """What its trials come to, 16 bits and NF4 in turn."""
    configs = [TrialConfig(precision=("16bit", "nf4")[n % 2], rank=8, alpha=16) for n in range(n_trials)]
    found = [peer_trial(workload.base_folder, rows, config, with_tune=True) for config in configs]
    return peer_figures(found, configs[0].max_steps) if found else None


def all_sweeps(
    trees: Mapping[str, Path], flags: Sequence[str], n_sweeps: int, caches: Path, *, at_once: bool
) -> tuple[dict[str, list[Times]], list[str]]:
    """What the sweeps of each tree come to, and the timeline of the last one of this tree.

    Args:
        caches: folder of the kernels that each tree's sweeps compile.
        at_once: one of each tree beside the other, each on a GPU of its own.
    """
    found: dict[str, list[Times]] = {name: [] for name in trees}
    timeline: list[str] = []
    gpus = (os.environ.get("CUDA_VISIBLE_DEVICES") or "0,1").split(",")

    def one(turn: int, name: str) -> None:
        variables = {"TRITON_CACHE_DIR": str(caches / name)}
        if at_once:
            variables["CUDA_VISIBLE_DEVICES"] = gpus[(list(trees).index(name) + turn) % len(trees)]
        with TemporaryDirectory(prefix="qlora-sweep-") as folder:
            found[name].append(sweep(trees[name], flags, Path(folder), variables))
            print(json.dumps({name: found[name][-1]}), file=sys.stderr, flush=True)
            if name == "this":
                snapshot = SweepSnapshot.read_in(Path(folder) / "mlflow_runs" / "sweeps" / NAME)
                timeline[:] = timeline_lines(snapshot.spans, 100)

    for turn in range(n_sweeps):
        if at_once:
            with ThreadPoolExecutor(len(trees)) as threads:
                list(threads.map(partial(one, turn), trees))
        else:
            for name in trees:
                one(turn, name)
    return found, timeline


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """All sweeps, the floor and the peer."""
    trees = {"this": REPO} | ({"other": given.other.resolve()} if given.other else {})
    base, rows = absolute(given.base_model), absolute(given.data)
    flags = ["--base-model", base, "--data", rows, *given.flags]
    device = "cuda" if count_gpus() else "cpu"
    with TemporaryDirectory(prefix="qlora-sweep-") as folder:
        found, timeline = all_sweeps(trees, flags, given.sweeps, Path(folder), at_once=given.at_once)
        workload = inputs.fetch(base, rows, Path(folder)).workload(native_dtype(device))
        return {
            "base": workload.base_caption,
            "device": device_name(device),
            "sweeps": found,
            "timeline": timeline,
            "floor": floor(workload, device, Path(folder)),
            "peer": peer(workload, rows, given.peer_trials),
        }


def read(file: Path) -> Sweeps:
    """The sweeps that `all_sweeps` said, from what was kept of standard error."""
    found: dict[str, list[Times]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith(('{"this": {', '{"other": {')):
            ((name, times),) = json.loads(line).items()
            found.setdefault(name, []).append(times)
    return found


def table(runs: Sequence[Sweeps]) -> Iterator[str]:
    """The first sweep of each tree in each run, then the others; a line at a time, medians where there are several."""
    names = [name for name in ("this", "other") if any(run.get(name) for run in runs)]
    firsts = {name: [run[name][0] for run in runs if run.get(name)] for name in names}
    others = {name: [one for run in runs for one in run.get(name, ())[1:]] for name in names}
    for title, part in {"cold": firsts, "warm": others}.items():
        if not all(part.values()):
            continue
        counts = sorted({len(some) for some in part.values()}, reverse=True)
        yield f"{title + ', median of ' + ' and '.join(map(str, counts)):32}" + "".join(f"{name:>10}" for name in names)
        for what, key in FIGURES.items():
            values = [median(one[key] for one in some) for some in part.values()]
            ratio = f"{values[0] / values[1]:12.2f} of it" if len(values) > 1 and "s)" in what else ""
            yield f"{what:32}" + "".join(f"{value:10.1f}" for value in values) + ratio


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What the bench prints, a line at a time."""
    sweeps: Sweeps = result["sweeps"]
    yield f"{result['base']}; {result['device']}"
    yield from table([sweeps])
    warm = sweeps["this"][1:] or sweeps["this"]
    ray, worker = result["floor"]["ray"], result["floor"]["worker"]
    begins = median(one["first_begins"] for one in warm)
    yield (
        f"floor of a first trial's begin: ray.init {ray:.1f} s, imports and base in a fresh process {worker:.1f} s; "
        f"it begins {begins - ray - worker:+.1f} s after that"
    )
    yield from result["timeline"]
    if (own := result["peer"]) and own["seconds_per_trial"]:
        n_trials = median(one["n_trials"] for one in warm)
        needed, answered = own["seconds_per_trial"] * n_trials, median(one["answered"] for one in warm)
        yield (
            f"the peer: {own['seconds_per_trial']:.1f} s a trial, {needed / 60:.0f} min for {n_trials:.0f}: "
            f"{needed / answered:.1f} times as long"
        )


def main(arguments: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    """Command line."""
    gpu = count_gpus() > 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other", type=Path, help="another checkout, to compare with")
    parser.add_argument("--sweeps", type=int, default=1, help="of each tree")
    parser.add_argument("--at-once", action="store_true", help="both trees' beside each other, on two GPUs")
    parser.add_argument("--from", dest="files", type=Path, nargs="+", help="what runs left on standard error")
    parser.add_argument("--peer-trials", type=int, default=2 if gpu else 0)
    parser.add_argument("--base-model", default="openai-community/gpt2-medium" if gpu else "demo")
    parser.add_argument("--data", default="tatsu-lab/alpaca" if gpu else "demo")
    parser.add_argument("flags", nargs="*", help="further flags of run, after --")
    given = parser.parse_args(arguments)
    if given.files:
        runs = list(map(read, given.files))
        if not any(runs):
            parser.error(f"there is no sweep in {' '.join(map(str, given.files))}")
        for line in table(runs):
            show(line)
        return 0
    if given.at_once and (not given.other or count_gpus() < 2):
        parser.error("--at-once needs --other and two GPUs")
    result = measured(given)
    for line in lines(result):
        show(line)
    show(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
