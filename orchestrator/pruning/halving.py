"""Multi-objective asynchronous successive halving: who goes on from a rung. Pure; every column is minimised.

Schmucker et al. 2021 (arXiv:2106.12639, algorithm 1): at each rung the first 1 / eta by non-dominated depth go on,
the depth that does not fit whole in the order of a spread over the front. Two things are ours. Memory and time are
known from the first steps on while the loss still falls, so trials are compared within their stratum of peak memory
only: else cheap trials, which are always early on the front, spare each other for ever and dear ones never stand a
chance. And a trial goes on that is on its stratum's front, or an extreme, among those that came to the rung so far. A
member of the final front may be neither that early, and is lost then: `make bench-search` says how many.
"""

from collections.abc import Callable
from math import ceil, floor, log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestrator.analysis.pareto import dominates, pareto_mask


def stratum(peak_memory_mib: float, share: float) -> int:
    """Number of the band of peak memory: each begins `share` above where the one before began.

    >>> [stratum(mib, 0.1) for mib in (1000.0, 1010.0, 1200.0)]
    [72, 72, 74]
    """
    return floor(log(max(peak_memory_mib, 1e-9)) / log(1 + share))


def depths(losses: ArrayLike, epsilon: ArrayLike | None = None) -> NDArray[np.int64]:
    """Non-dominated depth of each row, from 1 (Deb et al. 2002, doi:10.1109/4235.996017, section III-A).

    Depth 1 is the front; depth d + 1 is the front of what is left without depths 1 to d. Differences up to
    `epsilon` (of at most one objective, see pareto_mask) decide nothing.
    """
    array = np.asarray(losses, dtype=np.float64)
    found = np.zeros(len(array), dtype=np.int64)
    left, depth = np.arange(len(array)), 0
    while len(left):
        depth += 1
        on = pareto_mask(array[left], epsilon)
        found[left[on]] = depth
        left = left[~on] if on.any() else left[:0]
    found[found == 0] = depth  # several noisy objectives can dominate in a ring: all of it is the last depth
    return found


def crowding(losses: ArrayLike) -> NDArray[np.float64]:
    """Crowding distance of each row of one depth (Deb et al. 2002, section III-B); infinite at the ends.

    Sum over objectives of the distance between a row's two neighbours, as a share of the objective's range.
    """
    array = np.asarray(losses, dtype=np.float64)
    found = np.zeros(len(array))
    for column in array.T:
        order = np.argsort(column, kind="stable")
        ends = column[order[-1]] - column[order[0]]
        if ends > 0:
            found[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / ends
            found[order[[0, -1]]] = np.inf
    return found


def ranking(losses: ArrayLike, epsilon: ArrayLike | None = None) -> NDArray[np.int64]:
    """Indices of the rows, the best first: by depth, then the less crowded, then the earlier row."""
    array = np.asarray(losses, dtype=np.float64)
    depth = depths(array, epsilon)
    spread = np.zeros(len(array))
    for level in np.unique(depth):
        spread[depth == level] = crowding(array[depth == level])
    return np.lexsort((np.arange(len(array)), -spread, depth))


def holds_extreme(losses: ArrayLike, row: int) -> bool:
    """Whether a row alone has the least value of some objective."""
    array = np.asarray(losses, dtype=np.float64)
    others = np.delete(array, row, axis=0)
    return bool((array[row] < others.min(axis=0)).any()) if len(others) else True


def is_undominated(losses: ArrayLike, row: int, epsilon: ArrayLike | None = None) -> bool:
    """Whether `pareto_mask` marks a row, found without comparing the others with each other."""
    array = np.asarray(losses, dtype=np.float64)
    noise = np.zeros(array.shape[1]) if epsilon is None else np.asarray(epsilon, dtype=np.float64)
    return not dominates(array, array[row : row + 1], noise).any()


def n_kept(n_rows: int, eta: float) -> int:
    """How many of a stratum go on by their rank: 1 / eta of them, rounded up."""
    return ceil(n_rows / eta - 1e-9)


def is_among_first(losses: ArrayLike, row: int, n: int, epsilon: ArrayLike | None = None) -> bool:
    """Whether a row is one of the first n of `ranking`, without ranking those behind."""
    array = np.asarray(losses, dtype=np.float64)
    left = np.arange(len(array))
    while len(left) and n > 0:
        on = pareto_mask(array[left], epsilon)
        level = left[on] if on.any() else left  # a ring, see `depths`
        if row in level:
            order = np.lexsort((level, -crowding(array[level])))
            return row in level[order[:n]]
        n, left = n - len(level), left[~on]
    return False


def goes_on(
    losses: ArrayLike,
    strata: ArrayLike,
    row: int,
    *,
    eta: float,
    epsilon: ArrayLike | None = None,
    alive: ArrayLike | None = None,
    among_first: Callable[[int], bool] | None = None,
) -> bool:
    """Whether the trial of a row goes on from its rung.

    It does when it is in the first 1 / eta of its stratum, on the stratum's front (so on the whole front, if it is
    on that), or alone has the least value of an objective among the trials that were not stopped.

    Args:
        losses: (n_trials, n_objectives), of all trials that came to the rung so far, in that order.
        strata: (n_trials,), which of them are compared.
        epsilon: (n_objectives,), differences that decide nothing.
        alive: (n_trials,), False for the trials stopped at this rung; all alive where not given.
        among_first: whether the row is one of the first so many of its stratum, by who knows its depths already; by
            default `is_among_first`.
    """
    array = np.asarray(losses, dtype=np.float64)
    lives = np.ones(len(array), dtype=bool) if alive is None else np.asarray(alive, dtype=bool)
    left = np.flatnonzero(lives | (np.arange(len(array)) == row))
    if holds_extreme(array[left], int(np.searchsorted(left, row))):
        return True
    peers = np.flatnonzero(np.asarray(strata) == np.asarray(strata)[row])
    own = int(np.searchsorted(peers, row))
    if is_undominated(array[peers], own, epsilon):
        return True
    n = n_kept(len(peers), eta)
    return among_first(n) if among_first else is_among_first(array[peers], own, n, epsilon)
