"""The points of a space: which values have an order, and, where they are finitely many, those that are left."""

from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

if TYPE_CHECKING:
    from search_spaces import Parameter, Space

KeyOf = Callable[[Mapping[str, Any]], str]
Point = dict[str, Any]


def ordered(parameter: "Parameter") -> tuple[Any, ...] | None:
    """Its values from least to greatest where they are at least three numbers, else None.

    A sampler is asked for the place of such a value: to it, neighbours are alike, as choices never are.
    """
    choices = parameter.choices or ()
    numbers = [value for value in choices if isinstance(value, int | float) and not isinstance(value, bool)]
    return tuple(sorted(numbers)) if len(numbers) == len(choices) > 2 else None


def is_within(dist: BaseDistribution, value: Any) -> bool:
    """Whether a value could have been drawn from a distribution."""
    if isinstance(dist, CategoricalDistribution):
        return value in dist.choices
    return dist._contains(dist.to_internal_repr(value))


class Grid:
    """Points by the keys of their trials; listed once they are needed.

    Args:
        ordered: values from least to greatest, of the parameters that have an order.
    """

    def __init__(self, space: "Space", ordered: Mapping[str, tuple[Any, ...]]) -> None:
        self._space = space
        self._ordered = ordered
        self._points: dict[str, Point] | None = None

    def left(self, key_of: KeyOf, known: Callable[[str], bool]) -> Iterator[Point]:
        """Points whose trials are not known yet, in the grid's order."""
        if self._points is None:
            self._points = {key_of(point): point for point in self._space.grid()}
        return (point for key, point in self._points.items() if not known(key))

    def nearest(
        self, to: Mapping[str, Any], key_of: KeyOf, known: Callable[[str], bool], random: Random
    ) -> Point | None:
        """The unknown point nearest to another one, of equally near ones any; None where all are known."""
        left = list(self.left(key_of, known))
        random.shuffle(left)
        return min(left, key=lambda point: self._distance(point, to), default=None)

    def _distance(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
        """Places apart as a share of all, summed over the parameters; 1 for each choice that differs."""

        def apart(name: str) -> float:
            values = self._ordered.get(name)
            if values is None:
                return float(one[name] != other[name])
            return abs(values.index(one[name]) - values.index(other[name])) / (len(values) - 1)

        return sum(map(apart, one))
