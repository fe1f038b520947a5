"""Pure multi-objective mathematics: every column is minimised, every value finite.

Dominance and hypervolume are moocore's (Fonseca, Paquete and Lopez-Ibanez 2006,
doi:10.1109/CEC.2006.1688440); here they get our checks and our conventions.
"""

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray


def _losses(losses: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(losses, dtype=np.float64)
    if array.ndim != 2 or not np.isfinite(array).all():
        raise ValueError(f"losses must be a finite (n_trials, n_objectives) array, got shape {array.shape}")
    return array


def pareto_mask(losses: ArrayLike) -> NDArray[np.bool_]:
    """Mark the rows that no other row dominates.

    Row a dominates b when a <= b in every objective and a < b in one
    (Deb et al. 2002, doi:10.1109/4235.996017). Equal rows both stay.

    Args:
        losses: (n_trials, n_objectives), minimised; each column in its own unit.
    Returns:
        (n_trials,), True on the front; empty in, empty out.
    Raises:
        ValueError: losses is not 2-D, or not finite.
    """
    array = _losses(losses)
    if not len(array):
        return np.zeros(0, dtype=bool)
    return np.asarray(moocore.is_nondominated(array, keep_weakly=True), dtype=bool)


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
    array = _losses(losses)
    corner = _losses([np.asarray(reference)])[0]
    if array.shape[1] != len(corner) and len(array):
        raise ValueError(f"reference has {len(corner)} objectives, losses have {array.shape[1]}")
    inside = array[(array < corner).all(axis=1)] if len(array) else array
    return float(moocore.hypervolume(inside, ref=corner)) if len(inside) else 0.0
