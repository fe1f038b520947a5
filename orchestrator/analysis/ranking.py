"""Rows of several objectives in order of preference (Deb et al. 2002, doi:10.1109/4235.996017). Pure; minimised."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestrator.analysis.pareto import pareto_mask


def non_domination_ranks(losses: ArrayLike) -> NDArray[np.int64]:
    """Non-domination rank of each row, from 1 (Deb et al. 2002, doi:10.1109/4235.996017, section III-A).

    Rank 1 is the front; rank k + 1 is the front of what is left without ranks 1 to k.
    """
    array = np.asarray(losses, dtype=np.float64)
    found = np.zeros(len(array), dtype=np.int64)
    left, rank = np.arange(len(array)), 0
    while len(left):
        rank += 1
        on = pareto_mask(array[left])
        found[left[on]] = rank
        left = left[~on]
    return found


def crowding(losses: ArrayLike) -> NDArray[np.float64]:
    """Crowding distance of each row of one rank (Deb et al. 2002, section III-B); infinite at the ends.

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


def ranking(losses: ArrayLike) -> NDArray[np.int64]:
    """Indices of the rows, the best first: by non-domination rank, then the less crowded, then the earlier row."""
    array = np.asarray(losses, dtype=np.float64)
    rank = non_domination_ranks(array)
    spread = np.zeros(len(array))
    for level in np.unique(rank):
        spread[rank == level] = crowding(array[rank == level])
    return np.lexsort((np.arange(len(array)), -spread, rank))
