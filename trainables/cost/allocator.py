"""What PyTorch's CUDA caching allocator gives beyond what was asked for (c10/cuda/CUDACachingAllocator.cpp).

All that it gives counts as allocated. Tensors of at most 1 MiB are split off nearly exactly. A larger one takes the
smallest free block that holds it, else a new segment: 20 MiB, or for 10 MiB and more its size rounded up to 2 MiB. The
remainder of the block is free again only if it is more than 1 MiB; a smaller one stays with the tensor. A block that is
given back is joined to its free neighbours.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from itertools import repeat

from trainables.values.results import MIB

SMALL, LARGE = MIB, 10 * MIB
"""kSmallSize and kMinLargeAlloc: the largest small tensor, and the smallest with a segment of its own."""
SEGMENT, STEP = 20 * MIB, 2 * MIB
"""kLargeBuffer and kRoundLarge."""
Block = tuple[int, int]
"""Bytes, and address of the first."""


def unsplit_bytes(sizes: Iterable[int], scratch: Iterable[int] = repeat(0)) -> int:
    """Bytes that stay unsplit beside tensors that are made in this order and all live.

    Args:
        sizes: bytes of each.
        scratch: bytes of a tensor that is made before each, and freed after it.
    """
    pool, total = Pool(), 0
    for size, other in zip(sizes, scratch, strict=False):
        beside = pool.take(other) if other > SMALL else None
        if size > SMALL:
            total += pool.take(size)[0] - size
        if beside is not None:
            pool.give(beside)
    return total


class Pool:
    """The allocator's blocks of more than 1 MiB, on a device that has room for all."""

    def __init__(self) -> None:
        self._free: list[Block] = []
        self._end = 0  # of the last segment; between segments is a gap, as they are never joined

    def take(self, size: int) -> Block:
        """The block that a tensor gets; no smaller than its size."""
        place = bisect_left(self._free, (size, 0))
        given, start = self._free.pop(place) if place < len(self._free) else self._segment(size)
        if given - size <= SMALL:
            return given, start
        insort(self._free, (given - size, start + size))
        return size, start

    def give(self, block: Block) -> None:
        """Free a block that was taken."""
        size, start = block
        for free in list(self._free):
            if start in (sum(free), free[1] - size):
                self._free.remove(free)
                size, start = size + free[0], min(start, free[1])
        insort(self._free, (size, start))

    def _segment(self, size: int) -> Block:
        start, given = self._end, SEGMENT if size < LARGE else -(-size // STEP) * STEP
        self._end += given + 1
        return given, start
