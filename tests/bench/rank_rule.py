"""How often the rule of the smallest sufficient rank errs, beside two common ways. `python tests/bench/rank_rule.py`

Losses are drawn from a model whose smallest sufficient rank is known: a row's own difficulty (shared by all
ranks and the untuned base), what a seed does to all ranks (they share its data order) and to one rank, what a rank
does to a row, and noise of one row in one trial. The sizes are assumptions; each case names those it changes.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from orchestrator.analysis.sufficient_rank import MARGIN_SHARE, sufficient_rank

N_SWEEPS = 1000
UNTUNED_NATS, BEST_NATS = 3.4, 2.0
MARGIN_NATS = MARGIN_SHARE * (UNTUNED_NATS - BEST_NATS)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A truth to draw sweeps from.

    Attributes:
        excess: rank -> true loss above the best, in margins; sufficient up to 1.
        own_seed_nats: standard deviation of what a seed does to one rank.
        shared_seed_nats: of what it does to all ranks alike.
        rank_row_nats: of what a rank does to one row's mean loss, whatever the seed.
        noise_nats: of one row's mean loss in one trial, beyond all that.
    """

    name: str
    excess: Mapping[int, float]
    own_seed_nats: float = 0.003
    shared_seed_nats: float = 0.006
    rank_row_nats: float = 0.05
    noise_nats: float = 0.05
    n_rows: int = 256

    @property
    def answer(self) -> int:
        """The smallest sufficient rank; one exactly at the margin counts as too small."""
        return min(rank for rank, excess in self.excess.items() if excess < 1)


CASES = (
    Case(name="usual", excess={1: 2.0, 2: 1.3, 4: 0.4, 8: 0.1, 16: 0}),
    Case(name="no rank matters", excess={1: 0, 2: 0, 4: 0, 8: 0, 16: 0}),
    Case(name="largest rank worse", excess={1: 2.0, 2: 1.3, 4: 0.1, 8: 0, 16: 3.0}),
    Case(name="at the margin", excess={1: 1.0, 2: 0}),
    Case(name="at the margin, noisy rows", excess={1: 1.0, 2: 0}, own_seed_nats=0, rank_row_nats=0.12),
    Case(name="at the margin, noisy seeds", excess={1: 1.0, 2: 0}, own_seed_nats=0.02),
    Case(name="three at the margin", excess={1: 1.0, 2: 1.0, 4: 1.0, 8: 0, 16: 0}),
    Case(name="three at it, noisy rows", excess={1: 1.0, 2: 1.0, 4: 1.0, 8: 0}, own_seed_nats=0, rank_row_nats=0.12),
)
"""Ranks exactly at the margin count as too small: the hardest truth for the rule."""


def draw(case: Case, n_seeds: int, rng: np.random.Generator) -> tuple[dict[int, Floats], Floats, Floats]:
    """One sweep: rank -> (n_seeds, n_rows) summed losses, tokens of each row, untuned summed losses."""
    n_rows = case.n_rows
    tokens = np.clip(rng.lognormal(4, 0.8, n_rows).round(), 2, 200)
    difficulty = rng.normal(0, 0.7, n_rows)
    shared = rng.normal(0, case.shared_seed_nats, (n_seeds, 1))
    losses = {}
    for rank, excess in case.excess.items():
        own = rng.normal(0, case.own_seed_nats, (n_seeds, 1))
        of_row = rng.normal(0, case.rank_row_nats, n_rows)
        noise = rng.normal(0, case.noise_nats, (n_seeds, n_rows))
        losses[rank] = (BEST_NATS + excess * MARGIN_NATS + difficulty + shared + own + of_row + noise) * tokens
    return losses, tokens, (UNTUNED_NATS + difficulty) * tokens


def overlapping(samples: Mapping[int, Floats]) -> int:
    """The common way: the smallest rank whose 95 % t-interval overlaps that of the best, from independent samples."""
    ends = {}
    for rank, sample in samples.items():
        reach = stdtrit(len(sample) - 1, 0.975) * sample.std(ddof=1) / np.sqrt(len(sample))
        ends[rank] = (sample.mean(), sample.mean() - reach, sample.mean() + reach)
    _, best_low, best_high = min(ends.values())
    return min(rank for rank, (_, low, high) in ends.items() if low <= best_high and best_low <= high)


def answers(losses: Mapping[int, Floats], tokens: Floats, untuned: Floats) -> dict[str, int | None]:
    """What the rule and the common ways answer to one sweep."""
    return {
        "rule": sufficient_rank(losses, row_tokens=tokens, untuned_row_nats=untuned).rank,
        "seeds overlap": overlapping({rank: loss.sum(axis=1) / tokens.sum() for rank, loss in losses.items()}),
        "rows overlap": overlapping({rank: loss.mean(axis=0) / tokens.mean() for rank, loss in losses.items()}),
    }


def shares(case: Case, n_seeds: int, n_sweeps: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Way -> how often each of KINDS was the answer, from 0 to 1."""
    rng = np.random.default_rng(seed)
    counts: dict[str, Counter[str]] = {}
    for _ in range(n_sweeps):
        for way, found in answers(*draw(case, n_seeds, rng)).items():
            counts.setdefault(way, Counter()).update(_kinds(found, case.answer))
    return {way: {kind: count[kind] / n_sweeps for kind in KINDS} for way, count in counts.items()}


KINDS = ("too small", "right", "too large", "undetermined", "rank 1")


def _kinds(found: int | None, answer: int) -> list[str]:
    if found is None:
        return ["undetermined"]
    kind = "right" if found == answer else "too small" if found < answer else "too large"
    return [kind, "rank 1"] if found == 1 else [kind]


def lines(cases: Sequence[Case], n_sweeps: int) -> Iterator[str]:
    """The table, a line at a time."""
    yield f"{'truth':28}{'seeds':>6}  {'way':14}" + "".join(f"{kind:>14}" for kind in KINDS)
    for case in cases:
        for n_seeds in (3, 5):
            for way, share in shares(case, n_seeds, n_sweeps).items():
                yield f"{case.name:28}{n_seeds:6}  {way:14}" + "".join(f"{share[kind]:14.1%}" for kind in KINDS)


if __name__ == "__main__":
    start = perf_counter()
    for line in lines(CASES, N_SWEEPS):
        print(line, flush=True)
    print(f"{N_SWEEPS} sweeps a line, {perf_counter() - start:.0f} s; the rule's stated rate of too small answers: 5 %")
