"""Non-dominated depths of rows that come one after the other, kept instead of found anew for each."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestrator.analysis.pareto import dominates
from orchestrator.pruning.halving import crowding, depths


class Levels:
    """What `depths` gives of all rows so far.

    A row is one deeper than the deepest of those that dominate it. So a new row finds its depth from its dominators
    alone, and pushes down those it dominates that are not deeper, these the next, and so on. With noise, dominance is
    not transitive, so that also rows of lesser depths are looked at. It needs dominance without rings, hence noise in
    one objective at most (see pareto_mask).

    Attributes:
        epsilon: (n_objectives,), differences that decide nothing.
    """

    def __init__(self, losses: ArrayLike, epsilon: ArrayLike) -> None:
        """
        Args:
            losses: (n_rows, n_objectives), minimised, in the order in which they came.
        Raises:
            ValueError: more than one objective with noise.
        """
        self.epsilon = np.array(epsilon, dtype=np.float64)
        if np.count_nonzero(self.epsilon) > 1:
            raise ValueError(f"epsilon may be positive in one objective, got {self.epsilon.tolist()}")
        self._losses = np.array(losses, dtype=np.float64)
        self.depths: NDArray[np.int64] = depths(self._losses, self.epsilon)

    def __len__(self) -> int:
        return len(self._losses)

    def add(self, row: ArrayLike) -> None:
        """Take in one more row. Cost: O(n_rows) for each depth that it pushes rows into, and comparisons."""
        one = np.array(row, dtype=np.float64)[None]
        above = self.depths[dominates(self._losses, one, self.epsilon)[:, 0]]
        depth = 1 + int(above.max(initial=0))
        moved, below = one, depth
        while len(moved):
            worse = (moved.min(axis=0) <= self._losses + self.epsilon).all(axis=1)  # else none of them dominates it
            near = np.flatnonzero(worse & (self.depths <= below))
            hit = near[dominates(moved, self._losses[near], self.epsilon).any(axis=0)]
            below += 1
            self.depths[hit] = below
            moved = self._losses[hit]
        self._losses = np.concatenate([self._losses, one])
        self.depths = np.append(self.depths, depth)

    def takes(self, epsilon: ArrayLike) -> bool:
        """Go over to another noise, if no depth depends on it: no two rows differ by something in between."""
        after = np.array(epsilon, dtype=np.float64)
        for column, old, new in zip(self._losses.T, self.epsilon, after, strict=True):
            ordered = np.sort(column) if old != new else column[:0]
            for sign, side in ((1, "right"), (-1, "left")):
                before = np.searchsorted(ordered, column + sign * old, side)
                if (before != np.searchsorted(ordered, column + sign * new, side)).any():
                    return False
        self.epsilon = after
        return True

    def is_latest_among_first(self, n: int) -> bool:
        """Whether the row that came last is one of the first n of `ranking`."""
        latest = len(self) - 1
        n_before = int(np.count_nonzero(self.depths < self.depths[latest]))
        level = np.flatnonzero(self.depths == self.depths[latest])
        order = np.lexsort((level, -crowding(self._losses[level])))
        return latest in level[order[: max(0, n - n_before)]]
