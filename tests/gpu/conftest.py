"""What the tests on a real GPU share."""

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from accelerate.state import AcceleratorState


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def as_a_new_process() -> Iterator[Callable[[], None]]:
    """Each test begins as a worker does, and may begin again by calling this.

    A worker has one device and one dtype; accelerate refuses to change either within a process.
    """
    _forget()
    yield _forget
    _forget()
