"""How often each printed interval holds the truth, where that is known. `python -m tests.bench coverage`

Rows are drawn lognormally, as KL and losses are skewed: of one row a group, and of groups whose rows share most of what
they are. Seeds are drawn normally: the mean over a finalist's runs, the first of which was chosen for its luck, and the
reach of one run, whose standard deviation is known from few degrees of freedom. The bounds of the smallest sufficient
rank are of rank_rule.py's truth, the share lost by 4 bits of verdict.py's.

Each line has what the interval claims beside how often it held the truth, and how often the same over rows did.
"""

import sys
from collections.abc import Callable, Iterator
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.noise import Noise
from orchestrator.analysis.repeats import over_seeds
from orchestrator.analysis.sufficient_rank import LEVEL, upper_bound
from tests.bench import verdict
from trainables.comparison.bootstrap import CONFIDENCE, bca, over_groups
from trainables.values.findings import Estimate

N_DRAWS, SEED = 1000, 99_000
SPREAD = 1.0
"""Standard deviation of a row's logarithm: its mean is exp(1/2) times its median."""
N_CANDIDATES = 8
"""Trials of which the first run is the luckiest."""

Floats = NDArray[np.float64]
MEAN = float(np.exp(SPREAD**2 / 2))


def holds(found: Estimate, truth: float) -> bool:
    return found.low is not None and found.low <= truth <= found.high


def skewed_rows(n_groups: int, rows_a_group: int, n_draws: int, rng: np.random.Generator) -> tuple[float, float]:
    """Of the mean of lognormal rows: how often the interval over groups, and that over rows, held it.

    Rows of a group have nine tenths of their logarithm's variance in common.
    """
    hits = np.zeros(2)
    groups = np.repeat(np.arange(n_groups), rows_a_group)
    common = 0.9 if rows_a_group > 1 else 0.0
    for _ in range(n_draws):
        shared = rng.normal(0, SPREAD * common**0.5, n_groups)[groups]
        rows = np.exp(shared + rng.normal(0, SPREAD * (1 - common) ** 0.5, len(groups)))
        hits += holds(over_groups(rows, groups), MEAN), holds(bca(rows), MEAN)
    return tuple(hits / n_draws)


def ratio_of_distances(n_groups: int, n_draws: int, rng: np.random.Generator) -> float:
    """Of two means of rows that move together, as quantization_to_seed_ratio is: how often it was held."""
    hits = 0
    for _ in range(n_draws):
        shared = rng.normal(0, 0.7 * SPREAD, n_groups)
        ours, seeds = (np.exp(shared + rng.normal(0, 0.5**0.5 * SPREAD, n_groups)) for _ in range(2))
        rows = np.column_stack([0.5 * ours, seeds])
        hits += holds(over_groups(rows, range(n_groups), lambda means: means[..., 0] / means[..., 1]), 0.5)
    return hits / n_draws


def seed_means(n_seeds: int, n_draws: int, rng: np.random.Generator, *, chosen: bool) -> float:
    """Of a finalist's true mean over seeds: how often the t-interval held it.

    Args:
        chosen: its first run is the best of N_CANDIDATES equally good trials, by rows whose noise is as large as luck.
    """
    hits = 0
    for _ in range(n_draws):
        first = rng.normal(0, 1, N_CANDIDATES if chosen else 1)
        luck = first[np.argmin(first + rng.normal(0, 1, len(first)))]
        runs = [float(luck), *rng.normal(0, 1, n_seeds - 1).tolist()]
        found = over_seeds(runs)
        hits += found.low <= 0 <= found.high
    return hits / n_draws


def one_run(n_degrees: int, n_draws: int, rng: np.random.Generator) -> float:
    """How many equal runs lie within the reach of one, of which n_degrees of freedom gave the standard deviation."""
    reach = Noise(objective="eval_loss_nats", sd=1.0, n_degrees=n_degrees).one_run
    sd = np.sqrt(rng.chisquare(n_degrees, 100 * n_draws) / n_degrees)
    return float(np.mean(np.abs(rng.normal(0, 1, 100 * n_draws)) <= reach * sd))


def two_runs(n_degrees: int, n_draws: int, rng: np.random.Generator) -> float:
    """How many pairs of equal runs are not told apart, where n_degrees of freedom gave the standard deviation."""
    margin = Noise(objective="eval_loss_nats", sd=1.0, n_degrees=n_degrees).margin
    sd = np.sqrt(rng.chisquare(n_degrees, 100 * n_draws) / n_degrees)
    apart = np.abs(np.diff(rng.normal(0, 1, (100 * n_draws, 2))))[:, 0]
    return float(np.mean(apart <= margin * sd))


def rank_bound(n_seeds: int, n_draws: int, rng: np.random.Generator, *, seed_nats: float) -> float:
    """Of a rank's true loss over another's: how often its one-sided upper bound held it."""
    n_groups, hits = 229, 0
    for _ in range(n_draws):
        tokens = np.clip(rng.lognormal(4, 0.8, n_groups).round(), 2, 200)
        of_rank, noise = rng.normal(0, 0.05, n_groups), rng.normal(0, 0.05, (n_seeds, n_groups))
        losses = (of_rank + rng.normal(0, seed_nats, (n_seeds, 1)) + noise) * tokens
        hits += upper_bound(losses, tokens) >= 0
    return hits / n_draws


def lines(n_draws: int, seed: int = SEED) -> Iterator[str]:
    """The table, a line at a time."""
    rng = np.random.default_rng(seed)
    yield f"{'interval':66}{'claims':>8}{'holds':>8}{'over rows':>11}"

    def line(what: str, claims: float, held: float, by_row: float | None = None) -> str:
        return f"{what:66}{claims:8.0%}{held:8.1%}" + (f"{by_row:11.1%}" if by_row is not None else "")

    for n_groups, rows_a_group in ((30, 1), (64, 1), (229, 1), (64, 4), (229, 2)):
        held = skewed_rows(n_groups, rows_a_group, n_draws, rng)
        yield line(f"mean of lognormal rows, {n_groups} groups of {rows_a_group}", CONFIDENCE, *held)
    for n_groups in (64, 229):
        held = ratio_of_distances(n_groups, n_draws, rng)
        yield line(f"ratio of two such means, {n_groups} groups of 1", CONFIDENCE, held)
    for n_seeds in (3, 5):
        for chosen in (False, True):
            what = f"mean over {n_seeds} seeds" + (f", the first the best of {N_CANDIDATES}" if chosen else "")
            yield line(what, CONFIDENCE, seed_means(n_seeds, n_draws, rng, chosen=chosen))
    for n_degrees in (2, 4, 12):
        yield line(f"reach of one run, {n_degrees} degrees of freedom", 0.9, one_run(n_degrees, n_draws, rng))
    for n_degrees in (1, 2, 8):
        held = two_runs(n_degrees, n_draws, np.random.default_rng(seed))
        yield line(f"margin of noise between two runs, {n_degrees} degrees of freedom", 0.9, held)
    for n_seeds, seed_nats in ((3, 0.003), (3, 0.02), (5, 0.02)):
        held = rank_bound(n_seeds, n_draws, rng, seed_nats=seed_nats)
        yield line(f"upper bound of a rank's loss, {n_seeds} fresh seeds of sd {seed_nats:g} nats", LEVEL, held)
    for case in verdict.CASES:
        found = verdict.rates(case, n_draws, seed)[verdict.MARGIN]["covered"]
        yield line(f"share lost by 4 bits, {case.n_pairs} pairs, seed sd {case.paired:.1%} of the gain", 0.9, found)


def timed(say: Callable[[str], None], n_draws: int) -> None:
    start = perf_counter()
    for line in lines(n_draws):
        say(line)
    say(f"{n_draws} draws a line, {perf_counter() - start:.0f} s")


if __name__ == "__main__":
    timed(lambda line: print(line, flush=True), int(sys.argv[1]) if len(sys.argv) > 1 else N_DRAWS)
