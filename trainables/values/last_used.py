"""The values of the keys that were used last."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LastUsed(Generic[Key, Value]):
    """Values by keys, each made where it is missing; all but those that were used last are dropped.

    >>> squares = LastUsed[int, int](2)
    >>> [squares.get(n, lambda: n * n) for n in (1, 2, 1, 3)], len(squares)
    ([1, 4, 1, 9], 2)
    >>> squares.get(1, lambda: 0), squares.get(2, lambda: 0)
    (1, 0)
    """

    def __init__(self, most: int) -> None:
        """
        Args:
            most: values that stay.
        """
        self._values: dict[Key, Value] = {}
        self._most = most

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of a key, which is now the one that was used last."""
        self._values[key] = self._values.pop(key) if key in self._values else make()
        while len(self._values) > self._most:
            del self._values[next(iter(self._values))]
        return self._values[key]
