"""Which 4-bit trials need no baseline of their own: those whose 16-bit half has completed. Pure.

A completed 4-bit trial is compared with the 16-bit trial of the same settings, its baseline. One that is proposed at
settings of its own costs twice: itself and its baseline. One at the settings of a completed 16-bit trial costs itself,
and the comparison is there. So a 4-bit point that a sampler asks for gives way to such a one nearby.
"""

from collections.abc import Callable, Mapping
from math import log
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

PRECISION, FULL, QUANTIZED = "precision", "16bit", "nf4"
MAX_APART = 1.0
"""Distance to such a point: one choice that differs, or as much in shares of ranges."""

Point = Mapping[str, Any]
"""A value for each distribution, as Optuna has it."""


class Halves:
    """The completed 16-bit points of a space that searches both precisions; of any other space none."""

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        self._distributions = distributions
        precision = distributions.get(PRECISION)
        self.is_searched = isinstance(precision, CategoricalDistribution) and {FULL, QUANTIZED} <= {*precision.choices}
        self._full: list[Point] = []

    def completed(self, point: Point) -> None:
        """A trial of this point completed."""
        if self.is_searched and point[PRECISION] == FULL:
            self._full.append(point)

    def nearest(self, point: Point, is_new: Callable[[Point], bool]) -> Point | None:
        """In place of a 4-bit point, the nearest new one whose 16-bit half completed; None where none is near."""
        if not self.is_searched or point[PRECISION] != QUANTIZED:
            return None
        near = [(apart(full, point, self._distributions), place) for place, full in enumerate(self._full)]
        for distance, place in sorted(near):
            half = {**self._full[place], PRECISION: QUANTIZED}
            if distance <= MAX_APART and is_new(half):
                return half
        return None


def apart(one: Point, other: Point, distributions: Mapping[str, BaseDistribution]) -> float:
    """Of two points, whatever their precisions: shares of ranges, summed; 1 for each choice that differs."""
    distance = 0.0
    for name, dist in distributions.items():
        a, b = one[name], other[name]
        if name == PRECISION or a == b:
            continue
        if not isinstance(dist, FloatDistribution | IntDistribution):
            distance += 1
        elif dist.log:
            distance += abs(log(a / b)) / log(dist.high / dist.low)
        else:
            distance += abs(a - b) / (dist.high - dist.low)
    return distance
