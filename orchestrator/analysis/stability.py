"""How stable a place on the front is under the noise of what was measured. Pure."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestrator.analysis.pareto import pareto_mask

N_RESAMPLES = 1000
SEED = 0
"""Of the resamples: the same trials always have the same shares."""


Spread = tuple[float, int]
"""Standard deviation between equal runs, and the degrees of freedom that it was estimated with."""


def front_shares(losses: ArrayLike, spreads: Sequence[Spread], shared: Sequence[bool]) -> NDArray[np.float64]:
    """In how many of N_RESAMPLES resamples each row is on the front, as a share.

    Each resample draws every value anew from a normal distribution around the one measured, and takes plain dominance:
    so a row that one dominates by little still has a share, and so has a row of the front that another nearly
    dominates. The distribution's own spread is drawn first, as few degrees of freedom leave it open: sd sqrt(n / X), X
    from chi-squared with n degrees (Gelman et al. 2013, Bayesian Data Analysis, section 3.2), so that the difference of
    two rows is Student's t, as the margin of noise is. It is a measure of stability, not the probability that the row
    belongs there.

    Args:
        losses: (n_rows, n_objectives), minimised.
        spreads: (n_objectives,); a standard deviation of 0 leaves an objective as it is.
        shared: (n_objectives,), whether equal values of an objective are one measurement, and so drawn as one.
    Returns:
        (n_rows,), from 0 to 1.
    """
    table = np.asarray(losses, dtype=np.float64)
    noisy = np.flatnonzero([sd for sd, _ in spreads])
    if not len(noisy) or not len(table):
        return pareto_mask(table).astype(np.float64)
    places = {}
    for column in noisy:
        alike = np.unique(table[:, column], return_inverse=True)[1] if shared[column] else np.arange(len(table))
        places[column] = alike
    random, counts = np.random.default_rng(SEED), np.zeros(len(table))
    for _ in range(N_RESAMPLES):
        drawn = table.copy()
        for column, alike in places.items():
            sd, n_degrees = spreads[column]
            drawn_sd = sd * np.sqrt(n_degrees / random.chisquare(n_degrees))
            drawn[:, column] += drawn_sd * random.standard_normal(alike.max() + 1)[alike]
        counts += pareto_mask(drawn)
    return counts / N_RESAMPLES
