"""What it costs that no timing decides what a search does, see orchestrator.driver.in_order: `make bench ARGS=order`

python tests/bench/order.py [--seeds 20] [--sizes 32 100] [--draws 200] [--processes 2]

Two costs. Workers wait for the results that the next proposal is to see: simulated, with seconds of the recorded table
(tests/bench/search_table.py), 45 % of the trials stopped at a rung, and a 16-bit baseline after each 4-bit trial that
completed. And the sampler does not know the last results: the driver over the same table, beside `--asynchronous`, by
which it knows each at once, paired by seed. The last line is one JSON object; needs no GPU.
"""

import argparse
import heapq
import json
import sys
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import optuna
from scipy.stats import t

import search_spaces
from orchestrator.driver.in_order import LAG_PER_WORKER
from tests.bench import replay
from tests.bench.search_methods import Ours
from tests.bench.search_table import SPACE_FILE

TABLE = Path("mlflow_runs/recorded/search-table.parquet")
STOPPED_SHARE = 0.45
WORKERS = (2, 4, 8, 16)
LAGS_PER_WORKER = (1, LAG_PER_WORKER, 3)
N_WORKERS = 4
"""Of the driver over the table."""
MAX_WAITING = 0.03
"""Target: of wall time, on average."""
FIRST_SEED = 1000


@dataclass(frozen=True, slots=True)
class Unit:
    """A proposal: seconds of its trial, and of the 16-bit baseline that it brings (0 where it brings none)."""

    trial: float
    baseline: float


def drawn(table: replay.Recorded, n_trials: int, rng: np.random.Generator) -> list[Unit]:
    """Proposals at points of the table; a stopped trial ends at any of its rungs but the last."""
    points = list(table.rungs)
    is_nf4 = table.names.index("precision")
    units = []
    for number in rng.integers(len(points), size=n_trials):
        values = points[number]
        last = table.rungs[values][-1]
        full = table.max_steps * last["seconds_per_step"]
        if rng.random() < STOPPED_SHARE:
            units.append(Unit(full * rng.choice([1 / 8, 1 / 4, 1 / 2]), 0.0))
            continue
        twin = (*values[:is_nf4], "16bit", *values[is_nf4 + 1 :])
        baseline = table.max_steps * table.rungs[twin][-1]["seconds_per_step"]
        units.append(Unit(full, baseline if values[is_nf4] == "nf4" else 0.0))
    return units


def wall_seconds(units: Sequence[Unit], n_workers: int, lag: int | None, pair_lag: int = 0) -> float:
    """Until all are done; as soon as a worker is free, or, where there is a lag, once more is known.

    Args:
        lag: proposal k begins once the trials below k - lag ended, and the baselines of those below k - lag - pair_lag.
    """
    running: list[tuple[float, int, bool]] = []
    baselines: deque[int] = deque()
    is_open, has_pair_open = [True] * len(units), [True] * len(units)
    now, n_asked, n_ended, n_whole = 0.0, 0, 0, 0
    while True:
        while len(running) < n_workers:
            if baselines:
                place = baselines.popleft()
                heapq.heappush(running, (now + units[place].baseline, place, True))
            elif n_asked < len(units) and (
                lag is None or (n_ended >= n_asked - lag and n_whole >= n_asked - lag - pair_lag)
            ):
                heapq.heappush(running, (now + units[n_asked].trial, n_asked, False))
                n_asked += 1
            else:
                break
        if not running:
            return now
        now, place, was_baseline = heapq.heappop(running)
        is_open[place] = False
        if units[place].baseline and not was_baseline:
            baselines.append(place)
        else:
            has_pair_open[place] = False
        n_ended = is_open.index(True) if any(is_open) else len(units)
        n_whole = has_pair_open.index(True) if any(has_pair_open) else len(units)


def waiting(table: replay.Recorded, n_trials: int, n_draws: int, *, is_whole: bool) -> list[dict[str, Any]]:
    """Wall time that waiting adds, as a share of it: mean and 95th percentile over draws.

    Args:
        is_whole: a 4-bit trial and its baseline are one result, as where a similarity is asked for.
    """
    rng = np.random.default_rng(FIRST_SEED)
    draws = [drawn(table, n_trials, rng) for _ in range(n_draws)]
    found = []
    for n_workers in WORKERS:
        free = np.array([wall_seconds(units, n_workers, None) for units in draws])
        for per_worker in LAGS_PER_WORKER:
            lag = per_worker * n_workers
            ordered = np.array([wall_seconds(units, n_workers, lag, lag * (not is_whole)) for units in draws])
            added = ordered / free - 1
            figures = {"mean": float(added.mean()), "p95": float(np.quantile(added, 0.95))}
            case = {"n_trials": n_trials, "is_whole": is_whole, "n_workers": n_workers, "lag_per_worker": per_worker}
            found.append(case | figures)
    return found


def hypervolume_share(table_file: Path, n_trials: int, seed: int, asynchronous: bool) -> float:
    """Of the table's hypervolume, what a search of so many trials has come to at its end."""
    warnings.filterwarnings("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = search_spaces.load(str(SPACE_FILE))
    tables = list(replay.read(table_file, space).values())
    recorded = tables[seed % len(tables)]
    with TemporaryDirectory(prefix="qlora-sweep-") as folder:
        method = Ours(space, N_WORKERS, seed, Path(folder), n_trials=n_trials, asynchronous=asynchronous)
        return replay.replay(recorded, method, wanted_share=inf, n_workers=N_WORKERS, max_seconds=inf).share


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Hypervolume in order less that of `--asynchronous`, in per cent of the table's: mean and 95 % interval (t)."""

    n_trials: int
    in_order: float
    at_once: float
    difference: float
    low: float
    high: float
    n_seeds: int

    @property
    def is_within(self) -> bool:
        """Whether the two cannot be told apart, or order is better."""
        return self.high >= 0


def paired(n_trials: int, in_order: Sequence[float], at_once: Sequence[float]) -> Paired:
    first, second = 100 * np.array(in_order), 100 * np.array(at_once)
    gaps = first - second
    half = float(t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps)))
    mean = float(gaps.mean())
    means = {"in_order": float(first.mean()), "at_once": float(second.mean()), "difference": mean}
    return Paired(n_trials=n_trials, **means, low=mean - half, high=mean + half, n_seeds=len(gaps))


def measured(given: argparse.Namespace) -> list[Paired]:
    """Both ways under every seed."""
    seeds = range(FIRST_SEED, FIRST_SEED + given.seeds)
    with ProcessPoolExecutor(given.processes) as pool:
        running = {}
        for size in given.sizes:
            for way in (False, True):
                running[size, way] = [pool.submit(hypervolume_share, given.table, size, seed, way) for seed in seeds]
        found = {key: [future.result() for future in futures] for key, futures in running.items()}
    return [paired(size, found[size, False], found[size, True]) for size in given.sizes]


def lines(waits: Sequence[dict[str, Any]], pairs: Sequence[Paired]) -> Iterator[str]:
    """All that is said, a line at a time."""
    yield f"wall time that waiting adds, {STOPPED_SHARE:.0%} of trials stopped: mean (95th percentile)"
    yield f"{'trials':>6}{'workers':>9}" + "".join(f"{f'L = {n} x workers':>20}" for n in LAGS_PER_WORKER)
    for start in range(0, len(waits), len(LAGS_PER_WORKER)):
        row = waits[start : start + len(LAGS_PER_WORKER)]
        cells = "".join(f"{one['mean']:11.1%} ({one['p95']:6.1%})" for one in row)
        pairs_are = "  a similarity is asked for" if row[0]["is_whole"] else ""
        yield f"{row[0]['n_trials']:6}{row[0]['n_workers']:9}{cells}{pairs_are}"
    counted = [one for one in waits if one["lag_per_worker"] == LAG_PER_WORKER and not one["is_whole"]]
    worst = max(one["mean"] for one in counted)
    verdict = "met" if worst <= MAX_WAITING else "MISSED"
    yield f"the most at L = {LAG_PER_WORKER} x workers: {worst:.1%} (target: at most {MAX_WAITING:.0%}: {verdict})"
    for one in pairs:
        yield (
            f"{one.n_trials} trials, {N_WORKERS} workers, {one.n_seeds} seeds: {one.in_order:.2f} % of the table's "
            f"hypervolume in order, {one.at_once:.2f} % with each result known at once; difference "
            f"{one.difference:+.2f} points ({one.low:+.2f} to {one.high:+.2f}): "
            + ("not worse" if one.is_within else "WORSE")
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, default=20, help="of the driver over the table; 0: not at all")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 100], help="trials of a search")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args(arguments)
    space = search_spaces.load(str(SPACE_FILE))
    table = next(iter(replay.read(given.table, space).values()))
    waits = []
    for is_whole in (False, True):
        for size in given.sizes:
            waits += waiting(table, size, given.draws, is_whole=is_whole)
    pairs = measured(given) if given.seeds else []
    for line in lines(waits, pairs):
        print(line)
    print(json.dumps({"waiting": waits, "hypervolume": list(map(asdict, pairs))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
