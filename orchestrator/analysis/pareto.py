"""Pure multi-objective mathematics: every column is minimised, every value finite.

Dominance and hypervolume are moocore's (Fonseca, Paquete and Lopez-Ibanez 2006,
doi:10.1109/CEC.2006.1688440); here they get our checks and our conventions.
"""

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

CHUNK_ROWS = 256
"""Rows of the front that are compared with all rows at once."""


def _losses(losses: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(losses, dtype=np.float64)
    if array.ndim != 2 or not np.isfinite(array).all():
        raise ValueError(f"losses must be a finite (n_trials, n_objectives) array, got shape {array.shape}")
    return array


def pareto_mask(losses: ArrayLike, noise: ArrayLike | None = None) -> NDArray[np.bool_]:
    """Mark the rows of the front: no row of it dominates another by more than the noise.

    Row a dominates b when a <= b + noise in every objective and a < b - noise in one; with noise 0 this is Pareto
    dominance (Deb et al. 2002, doi:10.1109/4235.996017). Equal rows both stay.

    With noise, dominance is not transitive. Rows that none dominates stay, what they dominate is struck, and so on with
    the rest: where there is no ring, the one set in which no member dominates a member and that dominates every
    other row (the kernel of the relation, von Neumann and Morgenstern 1944). Up to two noisy objectives make no ring:
    in a ring the others are all equal, and each of its dominances lowers the sum of the two, each over its noise. In a
    ring of more, the first row by value stays, and what dominates it goes with what it dominates.

    Args:
        losses: (n_trials, n_objectives), minimised; each column in its own unit, the cost that breaks a ring first.
        noise: (n_objectives,), differences that mean nothing; all 0 where not given.
    Returns:
        (n_trials,), True on the front; empty in, empty out.
    Raises:
        ValueError: losses is not 2-D, or not finite; noise does not fit, or is negative.
    Cost: O(n_trials * n_front * n_objectives) with noise, a few times.
    """
    array = _losses(losses)
    if not len(array):
        return np.zeros(0, dtype=bool)
    margins = np.zeros(array.shape[1]) if noise is None else _losses([np.asarray(noise)])[0]
    if len(margins) != array.shape[1] or (margins < 0).any():
        raise ValueError(f"noise must be {array.shape[1]} numbers of at least 0, got {margins.tolist()}")
    if not margins.any():
        return np.asarray(moocore.is_nondominated(array, keep_weakly=True), dtype=bool)
    return _kernel(array, margins)


def _kernel(array: NDArray[np.float64], margins: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The members under noise: round by round the rows that none dominates, see `pareto_mask`."""
    members, left = np.zeros(len(array), dtype=bool), np.arange(len(array))
    while len(left):
        rows = array[left]
        struck = _dominated(rows, rows, margins)
        if struck.all():
            first, left = _ring_broken(rows, left, margins)
            members[first] = True
            continue
        members[left[~struck]] = True
        left, kept = left[struck], rows[~struck]
        left = left[~_dominated(array[left], kept, margins)]
    return members


def _ring_broken(
    rows: NDArray[np.float64], places: NDArray[np.intp], noise: NDArray[np.float64]
) -> tuple[np.intp, NDArray[np.intp]]:
    """Of rows that all are dominated, the place of the first by value, and of those that neither dominate it nor are
    dominated by it."""
    first = np.lexsort(rows.T[::-1])[:1]
    struck = dominates(rows[first], rows, noise)[0] | dominates(rows, rows[first], noise)[:, 0]
    struck[first] = True
    return places[first[0]], places[~struck]


def _dominated(rows: NDArray[np.float64], by: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n_rows,), whether any of the other rows dominates each by more than the noise."""
    # what a row dominates is also dominated by every row that is at least as good: the exact front is enough
    best = by[np.asarray(moocore.is_nondominated(by, keep_weakly=False), dtype=bool)]
    found = np.zeros(len(rows), dtype=bool)
    for start in range(0, len(best), CHUNK_ROWS):
        left = np.flatnonzero(~found)
        found[left] = dominates(best[start : start + CHUNK_ROWS], rows[left], noise).any(axis=0)
    return found


def dominates(a: NDArray[np.float64], b: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n_a, n_b), whether each row of a dominates each row of b by more than the noise, as in `pareto_mask`."""
    nowhere_worse = np.ones((len(a), len(b)), dtype=bool)
    somewhere_better = np.zeros_like(nowhere_worse)
    for ours, theirs, margin in zip(a.T, b.T, noise, strict=True):
        nowhere_worse &= ours[:, None] <= theirs + margin
        somewhere_better |= ours[:, None] < theirs - margin
    return nowhere_worse & somewhere_better


def _within(losses: ArrayLike, reference: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Losses and the reference point as checked arrays."""
    array, corner = _losses(losses), _losses([np.asarray(reference)])[0]
    if array.shape[1] != len(corner) and len(array):
        raise ValueError(f"reference has {len(corner)} objectives, losses have {array.shape[1]}")
    return array, corner


def hypervolume(losses: ArrayLike, reference: ArrayLike) -> float:
    """Volume dominated by the rows within the box that ends at `reference`.

    Rows that do not beat the reference in every objective add nothing
    (Zitzler and Thiele 1999, doi:10.1109/4235.797969).

    Args:
        losses: (n_trials, n_objectives), minimised.
        reference: (n_objectives,).
    Returns:
        Product of the objectives' units; 0 for no rows.
    Raises:
        ValueError: shapes do not fit, or a value is not finite.
    """
    array, corner = _within(losses, reference)
    inside = array[(array < corner).all(axis=1)] if len(array) else array
    return float(moocore.hypervolume(inside, ref=corner)) if len(inside) else 0.0


def growing_hypervolume(losses: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """Hypervolume of the first row, of the first two, ... of all; it never falls.

    Args:
        losses, reference: as of `hypervolume`.
    Returns:
        (n_trials,), each as of `hypervolume` up to rounding, and equal to the one before where a row adds nothing.
    Raises:
        ValueError: as `hypervolume`.
    Cost: O(n_trials * n_front * n_objectives), and one `hypervolume` of the front for each row that enters it.
    """
    array, corner = _within(losses, reference)
    front, volume = np.empty((0, len(corner))), 0.0
    found = np.zeros(len(array))
    for i, row in enumerate(array):
        if (row < corner).all() and not (front <= row).all(axis=1).any():
            front = np.vstack([front[~(row <= front).all(axis=1)], row])
            volume = max(hypervolume(front, corner), volume)  # rounding may lower it
        found[i] = volume
    return found
