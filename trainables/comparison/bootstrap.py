"""Bootstrap confidence intervals of functions of means over rows, or over groups of them. Pure.

tests/bench/coverage.py prints how often they hold the truth.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import inf, isfinite, isinf
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from trainables.values.findings import MIN_GROUPS, Estimate

CONFIDENCE = 0.95
N_RESAMPLES = 9999

Floats = NDArray[np.float64]
NORMAL = NormalDist()
ROUNDING = 1e-12
"""Resampled figures that differ by less than this, relative to the value, count as equal."""


def first_column(means: Floats) -> Floats:
    """The plain mean: (..., k) -> (...)."""
    return means[..., 0]


def over_groups(
    rows: NDArray[np.floating],
    groups: Sequence[int] | NDArray[np.integer],
    of: Callable[[Floats], Floats] = first_column,
    *,
    bounds: tuple[float, float] = (-inf, inf),
    n_telling: int | None = None,
) -> Estimate:
    """The figure of `bca`, its interval over groups: what rows of equal instruction share is no news from each.

    Rows of a group are summed, and their number is one more column, so that the figure stays that of means over rows.
    With fewer than MIN_GROUPS groups the interval is withheld.

    Args:
        groups: (n_rows,), the number of each row's group.
        n_telling: groups that the figure depends on; all of them if not given.
    """
    columns = np.asarray(rows, dtype=np.float64).reshape(len(groups), -1)
    _, group_of_row = np.unique(groups, return_inverse=True)
    sums = np.zeros((int(group_of_row.max(initial=-1)) + 1, columns.shape[1] + 1))
    np.add.at(sums, group_of_row, np.column_stack([columns, np.ones(len(columns))]))
    if (len(sums) if n_telling is None else n_telling) < MIN_GROUPS:
        if not len(sums):
            raise ValueError("there is no row")
        return Estimate(value=float(of(columns.mean(axis=0))), low=None, high=None)
    return bca(sums, lambda means: of(means[..., :-1] / means[..., -1:]), bounds=bounds)


def bca(
    rows: NDArray[np.floating],
    of: Callable[[Floats], Floats] = first_column,
    *,
    bounds: tuple[float, float] = (-inf, inf),
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> Estimate:
    """A figure over rows with its 95 % bias-corrected and accelerated bootstrap interval.

    Efron 1987 (doi:10.1080/01621459.1987.10478410), over resamples t* of the figure t:
    z0 = Phi^-1(share of t* < t, ties counted half), a = sum(d^3) / (6 sum(d^2)^1.5) with d the mean of the
    leave-one-out figures minus each; the ends are the quantiles Phi(z0 + (z0 + z) / (1 - a (z0 + z)))
    of t* at z = -1.96 and 1.96.

    Where every resample gives the same figure there is nothing to take quantiles of: see `_of_equal_rows`. Resamples
    and leave-one-out sets on which the figure is not finite (0 / 0 where no resampled row has a token of some kind) are
    left out: the interval is conditional on the figure being defined.

    Args:
        rows: (n_rows, k) or (n_rows,), the figures of each row that `of` needs the means of.
        of: (..., k) column means -> (...) figures; the mean of the first column if not given.
        bounds: least and largest value that the figure can take, whatever the rows.
        seed: of the resamples; equal for equal n_rows and seed, so that figures of the same rows are paired.
    Raises:
        ValueError: fewer than 2 rows, or the figure of the rows themselves is not finite.
    Cost: O(n_resamples * n_rows * k) time and n_resamples * n_rows * 8 bytes.
    """
    n_rows = len(rows)
    if n_rows < 2:
        raise ValueError(f"an interval over rows needs at least 2 of them, got {n_rows}")
    columns = np.asarray(rows, dtype=np.float64).reshape(n_rows, -1)
    value, resampled, left_out = _figures(columns, of, _counts(n_rows, seed, n_resamples))
    if not isfinite(value):
        raise ValueError(f"the figure of the {n_rows} rows is {value}, which has no interval")
    rounding = ROUNDING * max(1.0, abs(value))
    if not resampled.size or np.abs(resampled - value).max() <= rounding:
        return _of_equal_rows(value, bounds, n_rows, rounding)
    low, high = np.quantile(resampled, _levels(value, resampled, left_out))
    return Estimate(value=value, low=float(low), high=float(high))


def _figures(columns: Floats, of: Callable[[Floats], Floats], counts: Floats) -> tuple[float, Floats, Floats]:
    """The figure of all rows, and the finite figures of the resamples and of all rows but one."""
    n_rows = len(columns)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(of(columns.mean(axis=0)))
        resampled = np.asarray(of(counts @ columns / n_rows))
        left_out = np.asarray(of((columns.sum(axis=0) - columns) / (n_rows - 1)))
    return value, resampled[np.isfinite(resampled)], left_out[np.isfinite(left_out)]


@lru_cache(maxsize=2)
def _counts(n_rows: int, seed: int, n_resamples: int) -> Floats:
    """(n_resamples, n_rows), how often each resample drew each row, with replacement; not to be written to.

    Cached, as one comparison asks for many figures of the same number of rows.
    """
    drawn = np.random.default_rng(seed).integers(n_rows, size=(n_resamples, n_rows))
    drawn += np.arange(n_resamples)[:, None] * n_rows
    counts = np.bincount(drawn.ravel(), minlength=n_resamples * n_rows)
    return counts.reshape(n_resamples, n_rows).astype(np.float64)  # as products need them


def _levels(value: float, resampled: Floats, left_out: Floats) -> list[float]:
    """The BCa interval's two ends as quantile levels of the resampled figures, from 0 to 1."""
    n = len(resampled)
    below = (np.sum(resampled < value) + np.sum(resampled <= value)) / (2 * n)
    z0 = NORMAL.inv_cdf(min(max(below, 0.5 / n), 1 - 0.5 / n))
    d = left_out.mean() - left_out if left_out.size else np.zeros(1)
    spread = np.sum(d**2) ** 1.5
    a = np.sum(d**3) / (6 * spread) if spread > 0 else 0.0
    z = NORMAL.inv_cdf((1 + CONFIDENCE) / 2)
    return [NORMAL.cdf(z0 + (z0 + end) / (1 - a * (z0 + end))) for end in (-z, z)]


def _of_equal_rows(value: float, bounds: tuple[float, float], n_rows: int, rounding: float) -> Estimate:
    """The interval where all resamples agree.

    If the value is one of two finite bounds, the far end is 3 / n_rows of their distance away: a 95 % bound on a share
    never seen in n rows (rule of three, Hanley & Lippman-Hand 1983, doi:10.1001/jama.1983.03330370053031), each unseen
    row taken as bad as it can be. Otherwise the interval is the point itself.
    """
    least, largest = bounds
    if isinf(largest - least) or min(value - least, largest - value) > rounding:
        return Estimate(value=value, low=value, high=value)
    reach = min(3 / n_rows, 1.0) * (largest - least)
    if largest - value <= rounding:
        return Estimate(value=value, low=largest - reach, high=max(value, largest))
    return Estimate(value=value, low=min(value, least), high=least + reach)
