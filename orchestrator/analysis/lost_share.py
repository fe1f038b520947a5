"""How much of what tuning gains 4 bits lose: a share with its interval, paired by group of rows and by seed. Pure.

With the losses L4 and L16 of a pair and U of the untuned 16-bit base, the gain is G = U - L16, and the share s that 4
bits lose is where D(s) = L4 - (1 - s) L16 - s U = (L4 - L16) - s G is 0. Testing the sign of D(s) is testing for
non-inferiority with a margin that is a share of an estimated effect (Pigeot et al. 2003, doi:10.1002/sim.1450); the
zeros of its bounds are Fieller's interval of a ratio (Fieller 1954, J. R. Stat. Soc. B 16, 175). With D's means of
seeds and, over seeds, of groups, linearised for the token weights, its one-sided 95 % bounds are

    D(s) -+ sqrt(t(n_seeds - 1)^2 var_seeds / n_seeds + t(n_groups - 1)^2 var_groups / n_groups),

each part with the t quantile of its own degrees of freedom (Cochran 1964, Biometrics 20, 191), as in the rule of the
smallest sufficient rank. What a seed does to one group counts in both parts, which errs on the side of "undecided".
Both variances are quadratic in s, so the ends are the roots of one quadratic, and a gain whose lower bound is above 0
is what makes them finite. One pair does not show var_seeds: it is assumed, see ASSUMED_SEED_SHARE.

The first trial was chosen for its low loss, which flatters it. So the upper end is the higher of those over all pairs
and over the others alone, with the spread that all have. tests/bench/verdict.py prints the error rates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestrator.analysis.sufficient_rank import LEVEL, by_group, t_quantile
from trainables.values.findings import MIN_GROUPS

ASSUMED_SEED_SHARE = 0.012
"""Of one pair, which cannot show it: standard deviation of what a seed does to L4 - L16, as a share of the gain; twice
the 0.6 % that tests/bench/verdict.py has its targets for."""

Floats = NDArray[np.float64]
Answer = Literal["kept", "lost", "undecided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedLosses:
    """Losses of one 4-bit trial and its 16-bit baseline on the same test rows; each is (n_rows,), summed over tokens.

    Attributes:
        quantized, baseline: of the two trials, of one seed.
        untuned: of the 16-bit base without an adapter.
        quantized_untuned: of the 4-bit base without an adapter.
    """

    quantized: ArrayLike
    baseline: ArrayLike
    untuned: ArrayLike
    quantized_untuned: ArrayLike


@dataclass(frozen=True, slots=True, kw_only=True)
class LostShare:
    """What 4 bits lose, as a share of the gain G = U - L16: loss of the untuned 16-bit base minus that of the baseline.

    Attributes:
        share: x = (L4 - L16) / G, over all pairs; None where tuning gained nothing.
        low, high: a and b, see `lost_share`; None where there is no interval.
        withheld: why there is none, else None.
        gain_nats: G a token.
        gain_low_nats: its one-sided 95 % lower bound; None with fewer than MIN_GROUPS groups.
        rounding_share: what rounding alone costs the untuned base, as a share of G; None where share is.
        n_pairs: seeds that were trained at both precisions.
        n_groups: groups of test rows of equal instruction.
        by_seed: the share of each pair alone; without those whose tuning gained nothing.
    """

    share: float | None
    low: float | None = None
    high: float | None = None
    withheld: str | None = None
    gain_nats: float
    gain_low_nats: float | None = None
    rounding_share: float | None
    n_pairs: int
    n_groups: int
    by_seed: tuple[float, ...] = ()

    @property
    def over_seeds(self) -> tuple[float, float] | None:
        """Least and largest share of one pair; None with fewer than two."""
        return (min(self.by_seed), max(self.by_seed)) if len(self.by_seed) > 1 else None

    @property
    def won_back_share(self) -> float | None:
        """How much of what rounding alone costs tuning at 4 bits makes good; None where rounding costs nothing."""
        if self.share is None or self.rounding_share is None or self.rounding_share <= 0:
            return None
        return 1 - self.share / self.rounding_share

    def answer(self, margin: float) -> Answer | None:
        """Non-inferiority with a margin of so much of the gain; None without an interval.

        The interval [low, high) holds the margin exactly where the answer is "undecided".
        """
        if self.low is None or self.high is None:
            return None
        return "kept" if self.high <= margin else "lost" if self.low > margin else "undecided"


def lost_share(pairs: Sequence[PairedLosses], *, row_tokens: ArrayLike, row_groups: ArrayLike) -> LostShare:
    """Find the shares of the gain that 4 bits may have lost, see the module's head.

    Args:
        pairs: one for each seed, that of the chosen trial first.
        row_tokens, row_groups: (n_rows,), response tokens of each row and the number of its group.
    Raises:
        ValueError: no pair, or sizes that do not fit.
    """
    tokens = by_group(row_tokens, row_groups)
    quantized, baseline, untuned, quantized_untuned = _tables(pairs, row_groups, len(tokens))
    contrast = _Contrast(losses=quantized - baseline, gains=untuned - baseline, tokens=tokens)
    loss, gain = contrast.means(0)
    rounding = float((quantized_untuned - untuned).sum() / (len(pairs) * tokens.sum()))
    share, rounding_share = (loss / gain, rounding / gain) if gain > 0 else (None, None)
    counts = {"n_pairs": len(pairs), "n_groups": len(tokens), "by_seed": contrast.by_seed()}
    found = LostShare(share=share, gain_nats=gain, rounding_share=rounding_share, **counts)
    if len(tokens) < MIN_GROUPS:
        why = f"{len(tokens)} groups of equal instruction are too few for an interval, which takes {MIN_GROUPS}"
        return replace(found, withheld=why)
    fresh = min(1, len(pairs) - 1)  # the first of those that took no part in the choice
    gain_low = min(contrast.gain_low(0), contrast.gain_low(fresh))
    if gain_low <= 0:
        why = f"tuning gained nothing ({gain:.4f} nats a token, lower bound {gain_low:.4f})"
        return replace(found, gain_low_nats=gain_low, withheld=why)
    (low, high), (_, fresh_high) = contrast.ends(0), contrast.ends(fresh)
    return replace(found, gain_low_nats=gain_low, low=min(low, share), high=max(high, fresh_high, share))


class _Contrast:
    """Loss by 4 bits and gain by tuning, and the squared reach of a bound of loss - s gain.

    Args:
        losses, gains: (n_pairs, n_groups), summed over each group's tokens.
        tokens: (n_groups,).
    """

    def __init__(self, *, losses: Floats, gains: Floats, tokens: Floats) -> None:
        self._sums, self._n_tokens = (losses, gains), tokens.sum()
        self._n_pairs, n_groups = losses.shape
        shares = []
        for sums in self._sums:
            mean = sums.mean(axis=0).sum() / tokens.sum()
            shares.append((sums - mean * tokens) / tokens.mean())  # (n_pairs, n_groups), mean 0
        of_seeds, of_groups = [of.mean(axis=1) for of in shares], [of.mean(axis=0) for of in shares]
        self._groups, self._seeds = np.zeros((2, 2)), np.zeros((2, 2))
        if n_groups > 1:
            self._groups = t_quantile(n_groups - 1, LEVEL) ** 2 / n_groups * np.cov(of_groups)
        if self._n_pairs > 1:
            self._seeds = t_quantile(self._n_pairs - 1, LEVEL) ** 2 * np.cov(of_seeds)
        else:
            self._seeds[0, 0] = (NormalDist().inv_cdf(LEVEL) * ASSUMED_SEED_SHARE * self.means(0)[1]) ** 2

    def means(self, first: int) -> tuple[float, float]:
        """Loss and gain a token over the pairs from `first` on."""
        losses, gains = (sums[first:].mean(axis=0).sum() / self._n_tokens for sums in self._sums)
        return float(losses), float(gains)

    def by_seed(self) -> tuple[float, ...]:
        """Loss over gain of each pair whose gain is above 0."""
        losses, gains = (sums.sum(axis=1) for sums in self._sums)
        return tuple((losses[gains > 0] / gains[gains > 0]).tolist())

    def _reach(self, first: int) -> Floats:
        """R, where a bound of loss - s gain is sqrt((1, -s) R (1, -s)') away."""
        return self._groups + self._seeds / (self._n_pairs - first)

    def gain_low(self, first: int) -> float:
        """One-sided 95 % lower bound of the gain."""
        return self.means(first)[1] - sqrt(self._reach(first)[1, 1])

    def ends(self, first: int) -> tuple[float, float]:
        """Both s with (loss - s gain)^2 = (1, -s) R (1, -s)', where gain_low is above 0."""
        (loss, gain), reach = self.means(first), self._reach(first)
        square, half, constant = gain**2 - reach[1, 1], loss * gain - reach[0, 1], loss**2 - reach[0, 0]
        apart = sqrt(max(half**2 - square * constant, 0.0))
        return float(half - apart) / square, float(half + apart) / square


def _tables(pairs: Sequence[PairedLosses], groups: ArrayLike, n_groups: int) -> Floats:
    """(4, n_pairs, n_groups), the fields of PairedLosses."""
    if not pairs:
        raise ValueError("it takes at least one pair of trials")
    table = np.empty((len(PairedLosses.__dataclass_fields__), len(pairs), n_groups))
    for i, name in enumerate(PairedLosses.__dataclass_fields__):
        for j, pair in enumerate(pairs):
            table[i, j] = by_group(getattr(pair, name), groups)
    return table
