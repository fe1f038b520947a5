"""Where a model-based search begins, before there is anything to model. Pure."""

from collections.abc import Callable, Mapping
from math import exp, log
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

N_FIRST = 6
"""Trials before the sampler has a say: a sweep has tens of trials, so that Optuna's 10 are many of them."""
MIDDLE = 0.5
"""Share of every range that they are drawn from: who states a range puts what they believe in around its middle."""


def first_points(distributions: Mapping[str, BaseDistribution], seed: int, n: int = N_FIRST) -> list[dict[str, Any]]:
    """A Latin hypercube (McKay et al. 1979, doi:10.2307/1268522, section 2) over the middle of every range.

    A sampler that starts at random spends its first trials, which nothing can stop yet, on the ends of ranges as often
    as on their middles. Choices have no middle: all of them are drawn, as evenly as n allows.

    Returns:
        n points, the same for the same seed: of each name a value as its distribution has it.
    Raises:
        TypeError: a distribution of no kind that a space has.
    """
    cube = latin_hypercube(len(distributions), seed, n)
    values = [_value_at(dist) for dist in distributions.values()]
    return [
        {name: at(float(share)) for name, at, share in zip(distributions, values, row, strict=True)} for row in cube
    ]


def latin_hypercube(n_dimensions: int, seed: int, n: int) -> NDArray[np.float64]:
    """n points of the unit cube, (n, n_dimensions): in each dimension one in each n-th.

    Those of scipy.stats.qmc.LatinHypercube, which is slow to import while workers wait for a first task.
    """
    (rng,) = np.random.default_rng(seed).spawn(1)  # as scipy does
    within = rng.uniform(size=(n, n_dimensions))
    places = np.tile(np.arange(1, n + 1), (n_dimensions, 1))
    for row in places:
        rng.shuffle(row)
    return (places.T - within) / n


def _value_at(dist: BaseDistribution) -> Callable[[float], Any]:
    """From a share of a distribution (0 to under 1) to its value; of a range, a share of its middle."""
    if isinstance(dist, CategoricalDistribution):
        return lambda share: dist.choices[int(share * len(dist.choices))]
    if isinstance(dist, IntDistribution):
        return lambda share: dist.low + int(_inner(share) * (dist.high - dist.low + 1))
    if isinstance(dist, FloatDistribution) and dist.log:
        return lambda share: exp(log(dist.low) + _inner(share) * (log(dist.high) - log(dist.low)))
    if isinstance(dist, FloatDistribution):
        return lambda share: dist.low + _inner(share) * (dist.high - dist.low)
    raise TypeError(f"no range is known of {dist!r}")


def _inner(share: float) -> float:
    return 0.5 + MIDDLE * (share - 0.5)
