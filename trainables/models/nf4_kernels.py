"""4-bit weights to full ones by one Triton kernel, bit by bit what bitsandbytes makes of them by three.

Two NF4 numbers lie in a byte, the first in its high half; BLOCK of them have one scale (Dettmers et al. 2023,
arXiv:2305.14314, section 3), itself a byte of a code book, with a scale of its own and an offset ("double
quantization").
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState

BLOCK, SCALE_BLOCK = 64, 256
"""Weights of one scale, and scales of one scale of theirs, as bitsandbytes makes them for a Linear4bit."""
TILE = 32
"""Scales that one program reads."""
OPTIONS = {"block": BLOCK, "scale_block": SCALE_BLOCK, "tile": TILE, "enable_fp_fusion": False}
"""A product and a sum at once would be rounded once."""


def serves(packed: torch.Tensor, state: "QuantState") -> bool:
    """Whether a weight is quantized in the way that the kernel knows."""
    return (
        state.quant_type == "nf4"
        and state.nested
        and (state.blocksize, state.state2.blocksize) == (BLOCK, SCALE_BLOCK)
        and packed.dtype == torch.uint8
        and 2 * packed.numel() == BLOCK * state.absmax.numel()
    )


@triton.jit(do_not_specialize=["n_scales"])
def _dequantized(
    out,
    packed,
    scales,
    code,
    scales_of_scales,
    offset,
    numbers,
    n_scales,
    block: tl.constexpr,
    scale_block: tl.constexpr,
    tile: tl.constexpr,
):
    n = tl.program_id(0) * tile + tl.arange(0, tile)
    inside = n < n_scales
    index = tl.load(scales + n, mask=inside, other=0).to(tl.int32)
    scale = tl.load(code + index) * tl.load(scales_of_scales + n // scale_block, mask=inside, other=0.0)
    scale = (scale + tl.load(offset))[:, None]
    half: tl.constexpr = block // 2
    at = n[:, None] * half + tl.arange(0, half)[None, :]
    byte = tl.load(packed + at, mask=inside[:, None], other=0).to(tl.int32)
    first, second = tl.load(numbers + (byte >> 4)) * scale, tl.load(numbers + (byte & 15)) * scale
    values = tl.interleave(first, second).to(out.dtype.element_ty)
    tl.store(out + n[:, None] * block + tl.arange(0, block)[None, :], values, mask=inside[:, None])


def dequantized(packed: torch.Tensor, state: "QuantState") -> torch.Tensor:
    """What bitsandbytes.functional.dequantize_4bit makes of a weight that `serves`: of the state's shape and dtype."""
    out = torch.empty(state.shape, dtype=state.dtype, device=packed.device)
    n_scales = state.absmax.numel()
    second = state.state2
    of_scales = (state.absmax, second.code, second.absmax, state.offset, state.code, n_scales)
    _dequantized[(triton.cdiv(n_scales, TILE),)](out, packed, *of_scales, **OPTIONS)
    return out


def compilations(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    """What compiles the kernel for weights of a dtype."""
    pointers = (dtype, torch.uint8, torch.uint8, *(torch.float32,) * 4)
    yield partial(_dequantized.warmup, *pointers, 1, grid=(1,), **OPTIONS)
