"""Whether this project's Triton kernels can be run here; all they compute can be computed by plain PyTorch, too."""

import logging
from functools import cache
from threading import Lock

import torch

try:
    from trainables.models import mask_kernels
except ImportError:  # Triton comes with PyTorch for CUDA only
    mask_kernels = None

logger = logging.getLogger(__name__)
_first_launch = Lock()


def can_run_on(x: torch.Tensor) -> bool:
    """Whether kernels can compute with x."""
    return x.is_cuda and can_launch()


def can_launch() -> bool:
    """Launch the smallest kernel: Triton asks the machine for a C compiler then, which not all have.

    Seconds at its first call in a process; another thread that asks meanwhile waits for that one.
    """
    with _first_launch:
        return _can_launch()


@cache
def _can_launch() -> bool:
    if mask_kernels is None or not torch.cuda.is_available():
        return False
    zero = torch.zeros((), dtype=torch.int32, device="cuda")
    try:
        mask_kernels.token_keys(zero, zero, zero[None], zero[None])
    except Exception as error:  # of Triton, of the compiler, of the operating system: whatever it is, do without
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        logger.warning("Triton's kernels cannot be run here, plain PyTorch is used, which is slower: %s", reason)
        return False
    return True
