"""Our search beside others on simulated landscapes and the recorded table, paired by seed. Part of bench `search`.

Every method does the same number of trials (baselines come on top of ours, in trials and in time). Of each landscape:
the median over seeds of the difference in hypervolume, as a share of the other's, with a bootstrap interval; the
GPU-seconds over those of plain TPE; and what stopping loses for good: members of the front that the same trials would
have had.
"""

import hashlib
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import search_spaces
from search_spaces import Space
from tests.bench import landscapes, replay
from tests.bench.search_methods import Ours
from tests.bench.search_peers import Moasha, ParetoRankMedian, Points, Tpe
from tests.bench.search_table import SPACE_FILE

SIZES = (32, 100)
"""Trials that a sweep asks for: the default, and a long one."""
TABLE = "recorded table"
LANDSCAPES = (*landscapes.KINDS, TABLE)
HARD_CURVES = ("crossing curves", "late curves", "noisy curves")
OURS, PLAIN = "ours", "plain TPE"
PEERS = (PLAIN, "multi-metric pruner", "MOASHA", "random with our stop", "random")
METHODS = (OURS, *PEERS)
OTHERS = tuple(peer for peer in PEERS if peer != "random with our stop")
"""Methods without code of ours."""
MIN_DIFFERENCE, MAX_SECONDS, MAX_LOST, MIN_KEPT = -0.01, 0.85, 0.05, 0.995
"""Targets: least median difference to any peer, most of plain TPE's GPU-seconds, most of the front lost, least of the
volume kept on hard curves."""
N_BOOTSTRAP, INTERVAL = 2000, (0.025, 0.975)

Results = Mapping[tuple[str, str, int], Mapping[int, replay.Found]]
"""Landscape, method and place of the seed -> number of trials -> what was found."""


def method_of(name: str, space: Space, seed: int, n_trials: int, n_workers: int, folder: Path) -> replay.Method:
    """A method at its beginning."""
    match name:
        case "ours":
            return Ours(space, n_workers, seed, folder, n_trials=n_trials)
        case "random with our stop":
            return Ours(space, n_workers, seed, folder, n_trials=n_trials, method="random")
        case "plain TPE":
            return Tpe(space, seed)
        case "multi-metric pruner":
            return Tpe(space, seed, ParetoRankMedian())
        case "MOASHA":
            return Moasha(space, seed)
        case "random":
            return Points(space, seed)
        case other:
            raise ValueError(f"no method {other!r}")


def setting(name: str, base_seed: int, place: int, table: Path) -> tuple[Space, replay.Recorded]:
    """A landscape under one of its seeds, and the space that it is over."""
    if name != TABLE:
        return landscapes.space(), landscapes.table(landscapes.draw(name, landscape_seed(base_seed, place)))
    space = search_spaces.load(str(SPACE_FILE))
    tables = list(replay.read(table, space).values())
    return space, tables[place % len(tables)]


def landscape_seed(base_seed: int, place: int) -> int:
    """Of the place-th pair; neighbours have nothing in common."""
    return int(np.random.SeedSequence([base_seed, place]).generate_state(1)[0])


def outcome(name: str, method: str, base_seed: int, place: int, table: Path, n_workers: int) -> dict[int, replay.Found]:
    """One method on one landscape."""
    warnings.filterwarnings("ignore")
    space, recorded = setting(name, base_seed, place, table)
    seed = landscape_seed(base_seed, place) % 2**31
    with TemporaryDirectory(prefix="qlora-sweep-") as folder:
        made = method_of(method, space, seed, SIZES[-1], n_workers, Path(folder))
        return replay.growth(recorded, made, SIZES, n_workers)


class Cache:
    """Outcomes in a file, so that methods that did not change need not run anew; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, Any] = json.loads(path.read_text()) if path and path.exists() else {}

    def get(self, key: str) -> dict[int, replay.Found] | None:
        found = self._known.get(key)
        return found and {int(size): replay.Found(**one) for size, one in found.items()}

    def put(self, key: str, outcome: Mapping[int, replay.Found]) -> None:
        self._known[key] = {size: asdict(one) for size, one in outcome.items()}
        if self._path:
            self._path.write_text(json.dumps(self._known))


def measured(
    names: Sequence[str],
    methods: Sequence[str],
    *,
    base_seed: int,
    n_seeds: int,
    table: Path,
    n_workers: int,
    processes: int,
    cache: Path | None = None,
    cached: Sequence[str] = METHODS,
) -> dict[tuple[str, str, int], dict[int, replay.Found]]:
    """Every method on every landscape under every seed.

    Args:
        cached: methods whose outcomes are taken from the cache's file where it has them.
    """
    kept, results, running = Cache(cache), {}, {}
    with ProcessPoolExecutor(processes) as pool:
        for method in methods:
            for name in names:
                for place in range(n_seeds):
                    key = json.dumps([name, method, base_seed, place, n_workers])
                    known = kept.get(key) if method in cached else None
                    results[name, method, place] = known
                    if known is None:
                        arguments = (name, method, base_seed, place, table, n_workers)
                        running[name, method, place] = key, pool.submit(outcome, *arguments)
        try:
            for at, (key, future) in running.items():
                results[at] = future.result()
                kept.put(key, results[at])
                if at[2] == n_seeds - 1:
                    print(f"{at[1]} on {at[0]}: done", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Bootstrap percentile interval of the median (Efron 1979), 95 %."""
    digest = hashlib.sha256(np.array(values).tobytes()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    medians = np.median(rng.choice(values, (N_BOOTSTRAP, len(values))), axis=1)
    low, high = np.quantile(medians, INTERVAL)
    return float(low), float(high)


def column(results: Results, name: str, method: str, size: int, field: str) -> np.ndarray:
    """(n_seeds,), one figure of a method on a landscape."""
    found = []
    for (landscape, own, _), outcome in results.items():
        if (landscape, own) == (name, method):
            found.append(getattr(outcome[size], field))
    return np.array(found)


def difference(results: Results, name: str, peer: str, size: int) -> tuple[float, float, float]:
    """Ours over a peer's hypervolume less 1: the median over seeds, and its interval."""
    ours, theirs = (column(results, name, method, size, "share") for method in (OURS, peer))
    values = ours / theirs - 1
    return float(np.median(values)), *interval(values.tolist())


def lines(results: Results, names: Sequence[str], sizes: Sequence[int] = SIZES) -> Iterator[str]:
    """The tables, a line at a time: hypervolume found, differences to each peer, seconds and losses."""
    peers = [peer for peer in PEERS if (names[0], peer, 0) in results]
    for size in sizes:
        yield f"hypervolume after {size} trials, share of what there is (median over seeds)"
        yield f"{'':26}" + "".join(f"{method:>24}" for method in (OURS, *peers))
        for name in names:
            shares = [np.median(column(results, name, method, size, "share")) for method in (OURS, *peers)]
            yield f"{name:26}" + "".join(f"{share:24.3f}" for share in shares)
        yield f"ours beside each after {size} trials: median difference in %, 95 % interval"
        for name in names:
            cells = []
            for peer in peers:
                middle, low, high = (100 * part for part in difference(results, name, peer, size))
                cells.append(f"{middle:+.1f} ({low:+.1f} to {high:+.1f})")
            yield f"{name:26}{'':24}" + "".join(f"{cell:>24}" for cell in cells)
        yield f"after {size} trials: GPU-seconds over plain TPE's / front members lost by stopping / volume kept"
        for name in names:
            cells = [_costs(results, name, method, size) for method in (OURS, *peers)]
            yield f"{name:26}" + "".join(f"{cell:>24}" for cell in cells)
    yield from verdicts(results, names, peers, sizes)


def seconds_ratio(results: Results, name: str, method: str, size: int) -> float:
    """Median over seeds of a method's GPU-seconds over plain TPE's."""
    own, plain = (column(results, name, one, size, "gpu_seconds") for one in (method, PLAIN))
    return float(np.median(own / plain))


def _costs(results: Results, name: str, method: str, size: int) -> str:
    """Seconds over plain TPE's; lost members and kept volume, their means over seeds."""
    ratio = seconds_ratio(results, name, method, size)
    lost, kept = (column(results, name, method, size, field).mean() for field in ("lost_share", "kept_share"))
    return f"{ratio:.2f} / {lost:.1%} / {kept:.4f}"


def verdicts(results: Results, names: Sequence[str], peers: Sequence[str], sizes: Sequence[int]) -> Iterator[str]:
    """Each target, and whether it is met."""
    for size in sizes:
        for peer in peers:
            middles = {name: difference(results, name, peer, size)[0] for name in names}
            worst = min(middles, key=middles.__getitem__)
            n_above = sum(middle > 0 for middle in middles.values())
            yield _target(
                f"{size} trials, beside {peer}: least {100 * middles[worst]:+.1f} % ({worst}), above on {n_above} of "
                f"{len(names)}; at least {MIN_DIFFERENCE:.0%}",
                middles[worst] >= MIN_DIFFERENCE and (peer != PLAIN or 2 * n_above > len(names)),
            )
        ratios = {name: seconds_ratio(results, name, OURS, size) for name in names}
        worst = max(ratios, key=ratios.__getitem__)
        text = f"{size} trials, GPU-seconds of plain TPE's: median {np.median(list(ratios.values())):.2f}, most "
        yield _target(f"{text}{ratios[worst]:.2f} ({worst}); at most {MAX_SECONDS}", ratios[worst] <= MAX_SECONDS)
        lost = {name: column(results, name, OURS, size, "lost_share").mean() for name in names}
        worst = max(lost, key=lost.__getitem__)
        text = f"{size} trials, front members lost: mean {np.mean(list(lost.values())):.1%}, most {lost[worst]:.1%}"
        yield _target(f"{text} ({worst}); at most {MAX_LOST:.0%}", lost[worst] <= MAX_LOST)
        kept = {n: column(results, n, OURS, size, "kept_share").mean() for n in names if n in HARD_CURVES}
        if kept:
            worst = min(kept, key=kept.__getitem__)
            text = f"{size} trials, volume kept on hard curves: least {kept[worst]:.4f} ({worst})"
            yield _target(f"{text}; at least {MIN_KEPT}", kept[worst] >= MIN_KEPT)


def _target(text: str, is_met: bool) -> str:
    return f"{text}: {'met' if is_met else 'MISSED'}"
