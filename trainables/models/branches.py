"""Work beside other work in a captured graph: what does not need each other's results runs at the same time.

An adapter's products are too small to fill a GPU. In a graph they run beside the base's, with the same values. Where
Python launches each kernel that gains nothing, as launching takes longer than the kernels: there all stays one line.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

Value = TypeVar("Value")

_stream: torch.cuda.Stream | None = None
"""For the work beside; the same in all captures, as libraries keep a workspace for each stream that they have seen."""
_is_open = False
_has_begun = False
"""Both of the process, not of a thread: PyTorch runs the backward pass in a thread of its own."""


@contextmanager
def branching(device: torch.device) -> Iterator[None]:
    """Inside, `beside` begins a branch where the device is a GPU."""
    global _stream, _is_open
    if device.type == "cuda":
        _stream, _is_open = _stream or torch.cuda.Stream(), True
    try:
        yield
    finally:
        _is_open = False


@contextmanager
def joined() -> Iterator[None]:
    """What is queued afterwards follows all branches that begin inside: a capture cannot end with one that is open, as
    where its work ran out of memory before it asked for a result."""
    global _has_begun
    _has_begun = False
    try:
        yield
    finally:
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
    global _has_begun
    stream, _has_begun = torch.cuda.current_stream(), True
    _stream.wait_stream(stream)
    with torch.cuda.stream(_stream):
        value = work()
        done = _stream.record_event()

    def result() -> Value:
        stream.wait_event(done)
        return value

    return result
