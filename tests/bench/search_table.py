"""The recorded table that `make bench ARGS=search` replays: every point of a space on the demo model, at every rung.

python tests/bench/search_table.py OUT.parquet --processes 16 --device cpu [--max-seconds 280]

First the costs of all cost keys, each measured alone; then the trials, each in a process with one thread, seed by
seed. What OUT.parquet holds already is not run again, and what is known when the time is up is written: run it again
until it says whole. Needs neither Ray nor network.
"""

import argparse
import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import search_spaces
from orchestrator.report.rows import MEASURED
from trainables.values.config import TrialConfig
from trainables.values.results import Cost
from trainables.values.workload import Workload

SPACE_FILE = Path(__file__).with_suffix(".yaml")
N_SEEDS = 3
SAVE_SECONDS = 20.0
QUIET_AND_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""For worker processes; set before they start."""
COST_COLUMNS = tuple(name for name in Cost.__dataclass_fields__ if name != "breakdown")

Row = dict[str, Any]
Point = tuple[int, tuple[Any, ...]]
"""Seed, and the values of the space's parameters."""


def points(space: search_spaces.Space, n_seeds: int) -> Iterator[tuple[Point, TrialConfig]]:
    """Every trial of the table, seed by seed."""
    for seed, params in itertools.product(range(n_seeds), list(space.grid())):
        yield (seed, tuple(params.values())), space.config(params, seed=seed)


def prepare(device: str, cache: Path) -> Workload:
    """The demo's base and rows on this machine."""
    from trainables.cost.device import native_dtype
    from trainables.models import inputs

    return inputs.fetch("demo", "demo", cache).workload(native_dtype(device))


# --- in a worker process

BENCHES: dict[str, Any] = {}
"""The bench of this process: what it has loaded serves all its trials."""


def begin(workload: Workload, device: str) -> None:
    """Load what every trial of this process needs, on one thread."""
    import torch

    from trainables.worker_cache import WorkerCache

    torch.set_num_threads(1)
    BENCHES["bench"] = WorkerCache(workload, device)


def cost_of(config: TrialConfig) -> Cost:
    """Cost of a config's cell."""
    from trainables.trial import Trial

    trial = Trial(config, BENCHES["bench"])
    try:
        return trial.cost
    finally:
        trial.close()


def history_of(config: TrialConfig, cost: Cost) -> list[Row]:
    """A row a rung; of a trial that diverges, the last one says why and has no loss."""
    from trainables.trial import Trial
    from trainables.values.errors import TrialFailed

    trial = Trial(config, BENCHES["bench"], cost=cost)
    rows: list[Row] = []
    try:
        for measurement in trial.measurements():
            rows.append({name: getattr(measurement, name) for name in MEASURED} | {"reason": None})
    except TrialFailed as failure:
        done = rows[-1]["step"] if rows else 0
        lost = {"train_loss_nats": None, "eval_loss_nats": None, "reason": f"{failure.state}: {failure}"}
        rows.append({"step": done, **lost})
    finally:
        trial.close()
    return rows


# --- in the main process


class Table:
    """The file: rows by point, written whole and at once."""

    def __init__(self, path: Path, space: search_spaces.Space) -> None:
        self._path = path
        self._names = list(space.parameters)
        self._rows: dict[Point, list[Row]] = {}
        self._saved = time.monotonic()
        for row in pq.read_table(path).to_pylist() if path.exists() else []:
            point = (row["seed"], tuple(row[name] for name in self._names))
            self._rows.setdefault(point, []).append(row)

    def __contains__(self, point: Point) -> bool:
        return point in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def costs(self, configs: Mapping[Point, TrialConfig]) -> dict[str, Cost]:
        """Those of the cost keys that some known trial is of."""
        return {
            configs[point].cost_key: Cost(**{name: rows[0][name] for name in COST_COLUMNS})
            for point, rows in self._rows.items()
            if point in configs
        }

    def add(self, point: Point, rows: Iterable[Row], cost: Cost) -> None:
        seed, values = point
        common = dict(zip(self._names, values, strict=True)) | {"seed": seed}
        common |= {name: getattr(cost, name) for name in COST_COLUMNS}
        self._rows[point] = [common | row for row in rows]
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        if not self._rows:
            return
        rows = [row for point in sorted(self._rows, key=str) for row in self._rows[point]]
        beside = self._path.with_name(self._path.name + ".part")
        pq.write_table(pa.Table.from_pylist(rows), beside, compression="zstd")
        os.replace(beside, self._path)
        self._saved = time.monotonic()


def measure(args: argparse.Namespace, space: search_spaces.Space, table: Table, ends_at: float) -> None:
    """Costs, then trials, until all are there or the time is up."""
    configs = dict(itertools.islice(points(space, args.seeds), args.only))
    left = {point: config for point, config in configs.items() if point not in table}
    print(f"{len(configs)} trials, {len(configs) - len(left)} of them known", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        workload = prepare(args.device, Path(cache))
        spawn = multiprocessing.get_context("spawn")
        costs = table.costs(configs)
        cells = {config.cost_key: config for config in left.values() if config.cost_key not in costs}
        with ProcessPoolExecutor(1, spawn, begin, (workload, args.device)) as alone:
            for number, (cell, cost) in enumerate(zip(cells, alone.map(cost_of, cells.values()), strict=True), 1):
                costs[cell] = cost
                print(
                    f"cell {number} of {len(cells)}: {cost.peak_memory_mib:.1f} MiB, "
                    f"{1000 * cost.seconds_per_step:.1f} ms a step {cell}",
                    flush=True,
                )
        with ProcessPoolExecutor(args.processes, spawn, begin, (workload, args.device)) as pool:
            started = time.monotonic()
            running = {pool.submit(history_of, c, costs[c.cost_key]): point for point, c in left.items()}
            _collect(running, lambda point: costs[configs[point].cost_key], table, started, ends_at)
            pool.shutdown(cancel_futures=True)


def _collect(running: dict[Future, Point], cost_of_point: Any, table: Table, started: float, ends_at: float) -> None:
    try:
        for number, future in enumerate(as_completed(running, timeout=max(0.0, ends_at - time.monotonic())), 1):
            table.add(running[future], future.result(), cost_of_point(running[future]))
            if number % 20 == 0 or number == len(running):
                spent = time.monotonic() - started
                print(f"{number} of {len(running)} trials after {spent:.0f} s, {spent / number:.2f} s each", flush=True)
    except TimeoutError:
        print("the time is up: run the same command again to go on", flush=True)
    for future, point in running.items():
        if not future.cancel() and point not in table:  # at work: a few seconds
            table.add(point, future.result(), cost_of_point(point))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seeds", type=int, default=N_SEEDS)
    parser.add_argument("--max-seconds", type=float, default=1e9)
    parser.add_argument("--only", type=int, help="the first so many trials, to try it out")
    args = parser.parse_args()
    ends_at = time.monotonic() + args.max_seconds
    os.environ |= QUIET_AND_OFFLINE
    args.out.parent.mkdir(parents=True, exist_ok=True)
    space = search_spaces.load(str(SPACE_FILE))
    table = Table(args.out, space)
    try:
        measure(args, space, table, ends_at)
    finally:
        table.save()
    whole = space.n_points * args.seeds
    print(f"{args.out}: {len(table)} of {whole} trials{', whole' if len(table) == whole else ''}")


if __name__ == "__main__":
    main()
