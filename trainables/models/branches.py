"""Work beside other work in a captured graph: what does not need each other's results runs at the same time.

An adapter's products are too small to fill a GPU. In a graph they run beside the base's, with the same values. Where
Python launches each kernel that gains nothing, as launching takes longer than the kernels: there all stays one line.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

Value = TypeVar("Value")

MAX_UNSETTLED = 4
"""Pieces of work from `later` that may be under way: what they read stays in memory."""

_stream: torch.cuda.Stream | None = None
"""Of the branches; the same in all captures, as libraries keep a workspace for each stream that they have seen."""
_is_open = False
_has_begun = False
"""Both of the process, not of a thread: PyTorch runs the backward pass in a thread of its own."""
_unsettled: deque[tuple[torch.cuda.Event, Callable[[], object]]] = deque()
"""The end of each piece of work from `later` that nothing follows yet, and the work, which holds what it reads."""


@contextmanager
def branching(device: torch.device) -> Iterator[None]:
    """Inside, `beside` and `later` begin branches where the device is a GPU."""
    global _stream, _is_open
    if device.type == "cuda":
        _stream, _is_open = _stream or torch.cuda.Stream(), True
    try:
        yield
    finally:
        _is_open = False
        _unsettled.clear()  # of work that failed


@contextmanager
def joined() -> Iterator[None]:
    """What is queued afterwards follows all branches that begin inside: a capture cannot end with one that is open, as
    where its work ran out of memory before it asked for a result."""
    global _has_begun
    _has_begun = False
    try:
        yield
    finally:
        _unsettled.clear()
        if _has_begun:
            torch.cuda.current_stream().wait_stream(_stream)


def beside(work: Callable[[], Value]) -> Callable[[], Value]:
    """Begin work that follows what is queued already, but not what will be queued next.

    Whatever the work reads must be kept until its result was asked for: by then nothing can take its memory.

    Returns:
        gives the work's result; what is queued afterwards follows the work. To be called once, on the same stream.
    """
    if not _is_open:
        value = work()
        return lambda: value
    value, done = _begun(work)

    def result() -> Value:
        torch.cuda.current_stream().wait_event(done)
        return value

    return result


def later(work: Callable[[], Value]) -> Value:
    """The result of work like that of `beside`, which nothing may read before `settle`.

    As the gradients of a step in which each matrix is used once: of one that is used twice autograd reads both. What
    the work itself refers to is kept as long as it must be.
    """
    if not _is_open:
        return work()
    settle(MAX_UNSETTLED - 1)
    value, done = _begun(work)
    _unsettled.append((done, work))
    return value


def settle(n_unsettled: int = 0) -> None:
    """What is queued afterwards follows all work from `later` but for the last pieces, so many."""
    while len(_unsettled) > n_unsettled:
        done, _ = _unsettled.popleft()
        torch.cuda.current_stream().wait_event(done)


def _begun(work: Callable[[], Value]) -> tuple[Value, torch.cuda.Event]:
    """What work gives, and its end on the stream of the branches."""
    global _has_begun
    _has_begun = True
    _stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(_stream):
        return work(), _stream.record_event()
