"""Compiles this project's Triton kernels before they are needed: in threads of a process, or as a process of its own.

As a process (`python -m trainables.models.compile_ahead 90`, for a GPU of compute capability 9.0) it leaves them in
Triton's cache, where the next process finds them. It touches no GPU and imports as little as it can.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from trainables.models.compiler import Compiler
from trainables.models.kernels import can_launch

try:
    from trainables.models import adapter_kernels, decode_kernels, loss_kernels, mask_kernels, nf4_kernels
except ImportError:  # Triton comes with PyTorch for CUDA only
    adapter_kernels = None

if TYPE_CHECKING:
    from triton.backends.compiler import GPUTarget

MAX_SECONDS = 60
"""Of the process, which others wait for."""
WARP_THREADS = 32
USUAL_COLUMNS = 50_264
"""Of the default base's logits: GPT-2's 50,257 tokens, see trainables.models.chunked_loss.aligned_logits."""
BFLOAT16_FROM = 80
"""The first compute capability with bfloat16, see trainables.cost.device.native_dtype."""


def _compilations(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    """Those that a worker needs first come first."""
    yield from mask_kernels.compilations()
    yield from loss_kernels.compilations(dtype, USUAL_COLUMNS)
    yield from nf4_kernels.compilations(dtype)
    yield from adapter_kernels.compilations(dtype)
    yield from decode_kernels.compilations(dtype)


def compile_ahead(dtype: torch.dtype, after: "subprocess.Popen | None" = None) -> Compiler | None:
    """Compile kernels beside what else this process does: where Triton has kept none from before, the base's load,
    trials of new kinds and the first comparison would wait for theirs. None where there is no Triton.

    Args:
        dtype: of the inputs.
        after: a process that compiles them, too, and ends by itself: what it left is taken from Triton's cache.
    """
    if adapter_kernels is None:
        return None
    device = torch.cuda.current_device()

    def on_device(compilation: Callable[[], object]) -> Callable[[], object]:
        def job() -> None:
            if after is not None:
                after.wait()
            torch.cuda.set_device(device)
            if can_launch():
                compilation()

        return job

    return Compiler(map(on_device, _compilations(dtype)))


class NoDevice:
    """In place of Triton's driver: says what to compile for, and needs no GPU for it."""

    def __init__(self, target: "GPUTarget") -> None:
        self._target = target

    def get_current_target(self) -> "GPUTarget":
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main(capability: int) -> None:
    """Compile them all.

    Args:
        capability: of the GPU, e.g. 90 for 9.0.
    """
    if adapter_kernels is None:
        return
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    signal.alarm(MAX_SECONDS)
    driver.set_active(NoDevice(GPUTarget("cuda", capability, WARP_THREADS)))
    dtype = torch.bfloat16 if capability >= BFLOAT16_FROM else torch.float16
    Compiler(_compilations(dtype)).wait()


if __name__ == "__main__":
    main(int(sys.argv[1]))
