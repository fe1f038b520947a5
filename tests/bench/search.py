"""How many GPU-seconds a search needs, beside others: `make bench ARGS=search`

python -m tests.bench search [--parts table landscapes ask-tell] [--seeds 20] [--processes 2]
python -m tests.bench search --parts landscapes --seed-of-commit HEAD

table: replays a recorded table (tests/bench/search_table.py) under simulated time: GPU-seconds until the completed
trials dominate 95 % of the hypervolume of the whole table. Searchers and schedulers are each library's own objects, or
a rule written down here from its paper (tests/bench/search_peers.py). Then what stopping early loses for good: the same
search carried on until every point was taken up.
landscapes: ours beside others on simulated landscapes over the default space and on the table, after as many trials
(tests/bench/search_landscapes.py). Without --seed-of-commit these are landscapes of development: settings may have been
chosen on them.
ask-tell: the time of ask, tell and ledger behind 10,000 trials.

The last line is one JSON object; needs no GPU.
"""

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import optuna

import search_spaces
from tests.bench import ask_tell, replay, search_landscapes
from tests.bench.search_methods import LABELS, METHODS, made
from tests.bench.search_table import SPACE_FILE

TABLE = Path("mlflow_runs/recorded/search-table.parquet")
WANTED_SHARE = 0.95
N_WORKERS = 4
FIRST_SEED = 1000
"""Settings were chosen on seeds below this one."""
MAX_OF_RANDOM, MAX_OF_PEER = 1 / 3, 0.8
"""Targets: of random's median, and of the best peer's."""
PEERS = ("ray", "syne")
PARTS = ("table", "landscapes", "ask-tell")
DEVELOPMENT_SEED = 7
"""Of the landscapes that settings are chosen on."""
STOPPING = ("ours",)
"""Methods that stop trials early and end by themselves once every point was taken up."""


def outcome(table: Path, name: str, seed: int, wanted_share: float) -> replay.Outcome:
    """One method under one seed, on the table's seeds in turn."""
    warnings.filterwarnings("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = search_spaces.load(str(SPACE_FILE))
    tables = list(replay.read(table, space).values())
    recorded = tables[seed % len(tables)]
    with TemporaryDirectory(prefix="qlora-sweep-") as folder:
        method = made(name, space, recorded, N_WORKERS, seed, Path(folder))
        return replay.replay(
            recorded, method, wanted_share=wanted_share, n_workers=N_WORKERS, max_seconds=recorded.seconds
        )


def summary(outcomes: Sequence[replay.Outcome]) -> dict[str, Any]:
    """Quartiles over seeds; where the share was not reached the time counts as endless (null)."""
    seconds = [inf if one.gpu_seconds is None else one.gpu_seconds for one in outcomes]
    quartiles = np.quantile(seconds, [0.25, 0.5, 0.75], method="higher").tolist()
    return {
        "gpu_seconds_quartiles": [value if value < inf else None for value in quartiles],
        "n_reached": sum(value < inf for value in seconds),
        "n_seeds": len(outcomes),
        "median_trials": float(np.median([one.n_trials for one in outcomes])),
        "median_completed": float(np.median([one.n_completed for one in outcomes])),
        "median_share_at_the_end": float(np.median([one.share for one in outcomes])),
    }


def losses(outcomes: Sequence[replay.Outcome]) -> dict[str, Any]:
    """What a search that took up every point has lost for good: mean over seeds, and the range."""
    members = [one.lost_share for one in outcomes]
    volume = [1 - one.share for one in outcomes]
    return {
        "lost_members_share": float(np.mean(members)),
        "lost_members_share_range": [min(members), max(members)],
        "lost_volume_share": float(np.mean(volume)),
        "lost_volume_share_range": [min(volume), max(volume)],
        "n_seeds": len(outcomes),
    }


def ratio(ours: float | None, other: float | None) -> float | None:
    """Of two medians; 0 beside one that is endless."""
    if ours is None:
        return None
    return 0.0 if other is None else ours / other


def verdict(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Ours beside random and beside the best peer."""
    medians = {name: result["gpu_seconds_quartiles"][1] for name, result in results.items()}
    peers = [medians[name] for name in PEERS if medians.get(name) is not None]
    return {
        "of_random": ratio(medians["ours"], medians["random"]) if "random" in medians else None,
        "of_best_peer": ratio(medians["ours"], min(peers, default=None)) if medians.keys() & set(PEERS) else None,
    }


def lines(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The table, a line at a time."""
    yield f"GPU-seconds to {WANTED_SHARE:.0%} of the table's hypervolume, {N_WORKERS} workers; - : never"
    yield f"{'':44}{'first q.':>10}{'median':>10}{'third q.':>10}{'reached':>10}{'trials':>8}{'full':>6}"
    for name, result in results.items():
        quartiles = "".join(f"{'-' if v is None else f'{v:.0f}':>10}" for v in result["gpu_seconds_quartiles"])
        reached = f"{result['n_reached']} of {result['n_seeds']}"
        counts = f"{result['median_trials']:8.0f}{result['median_completed']:6.0f}"
        yield f"{LABELS[name]:44}{quartiles}{reached:>10}{counts}"


def loss_lines(lost: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The same of what stopping early loses."""
    for name, result in lost.items():
        low, high = result["lost_members_share_range"]
        least, most = result["lost_volume_share_range"]
        yield (
            f"lost for good, {LABELS[name]}: {result['lost_members_share']:.0%} of the front's members "
            f"({low:.0%} to {high:.0%}), {result['lost_volume_share']:.2%} of its volume ({least:.2%} to {most:.2%})"
        )


def report(result: Mapping[str, Any]) -> Iterator[str]:
    """All that is said of a run, a line at a time."""
    if result["methods"]:
        yield from lines(result["methods"])
    yield from loss_lines(result["lost"])
    for name, target in (("of_random", MAX_OF_RANDOM), ("of_best_peer", MAX_OF_PEER)):
        if result.get(name) is not None:
            yield f"ours {name.replace('_', ' ')}: {result[name]:.2f} (target: at most {target:.2f})"
    if "ask_tell" in result:
        yield ask_tell.line(result["ask_tell"])
    yield from result.get("landscapes", ())


def measured(
    given: argparse.Namespace,
    methods: Sequence[str],
    wanted_share: float,
    summed_up: Callable[[Sequence[replay.Outcome]], dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Every method under every seed."""
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    results = {}
    with ProcessPoolExecutor(given.processes) as pool:
        running = {
            name: [pool.submit(outcome, given.table, name, seed, wanted_share) for seed in seeds] for name in methods
        }
        try:
            for name, futures in running.items():
                results[name] = summed_up([future.result() for future in futures])
                print(f"{name}: {json.dumps(results[name])}", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # an error is said now, not after all that was asked for
            raise
    return results


def seed_of(commit: str | None) -> int:
    """The first 32 bits of a commit's hash: nobody can have chosen a setting on what it draws.

    Raises:
        subprocess.CalledProcessError: there is no such commit.
    """
    if commit is None:
        return DEVELOPMENT_SEED
    command = ["git", "rev-parse", "--verify", f"{commit}^{{commit}}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    return int(done.stdout[:8], 16)


def replayed(given: argparse.Namespace) -> dict[str, Any]:
    """The part `table`."""
    results = measured(given, given.methods, WANTED_SHARE, summary)
    lost = measured(given, [name for name in STOPPING if name in given.methods], inf, losses)
    compared = verdict(results) if "ours" in results else {}
    return {"methods": results, "lost": lost, "table": str(given.table), **compared}


def on_landscapes(given: argparse.Namespace) -> Iterator[str]:
    """The part `landscapes`, a line at a time."""
    seed = seed_of(given.seed_of_commit)
    results = search_landscapes.measured(
        search_landscapes.LANDSCAPES,
        search_landscapes.METHODS,
        base_seed=seed,
        n_seeds=given.seeds,
        table=given.table,
        n_workers=given.workers,
        processes=given.processes,
        cache=given.cache,
        cached=search_landscapes.METHODS if given.seed_of_commit else search_landscapes.OTHERS,
    )
    source = f"of commit {seed:08x}" if given.seed_of_commit else "of development"
    yield f"landscapes {source}, {given.seeds} seeds, {given.workers} worker(s)"
    yield from search_landscapes.lines(results, search_landscapes.LANDSCAPES)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["table", "ask-tell"])
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--trials", type=int, default=10_000, help="behind which ask and tell are timed")
    parser.add_argument("--seed-of-commit", metavar="COMMIT", help="landscapes are drawn from a commit's hash")
    parser.add_argument("--workers", type=int, default=1, help="of the landscapes' searches")
    parser.add_argument(
        "--cache", type=Path, help="file that keeps what methods came to, to go on from; others' in development"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    given = options().parse_args(arguments)
    if "table" in given.parts and "syne" in given.methods and not find_spec("syne_tune"):
        print("syne-tune is not installed: `make bench ARGS=search` installs it", file=sys.stderr)
        return 2
    result: dict[str, Any] = replayed(given) if "table" in given.parts else {"methods": {}, "lost": {}}
    if "ask-tell" in given.parts:
        result["ask_tell"] = ask_tell.measured(given.trials)
    if "landscapes" in given.parts:
        result["landscapes"] = list(on_landscapes(given))
    for line in report(result):
        print(line)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
