"""trainables.models.dropout_mask as Triton kernels: the same bits, one kernel for each operation.

What changes from batch to batch or from module to module is not specialized: a kernel that had to be compiled while
steps are captured would end the capture.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from trainables.models.dropout_mask import Mask

FIRST_KEY = tl.constexpr(0x3C6EF372)
KEYS = 256
"""Of tokens, that one program makes."""


@triton.jit
def _scrambled(x):
    """See trainables.models.dropout_mask; x is uint32."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    return (x ^ (x >> 15)) * 0x846CA68B


@triton.jit
def _mixed(x):
    x = _scrambled(x)
    return x ^ (x >> 16)


@triton.jit
def keep_tile(keys, module, channels, threshold):
    """Which elements of a tile are kept.

    Args:
        keys: (n,) int32, of the tile's tokens.
        channels: (m,) int32.
    Returns:
        (n, m), true or false.
    """
    of_tokens = _mixed(keys.to(tl.uint32, bitcast=True) ^ module.to(tl.uint32))
    of_channels = _mixed(channels.to(tl.uint32, bitcast=True) ^ FIRST_KEY)
    hashed = _scrambled(of_tokens[:, None] + of_channels[None, :])
    return hashed.to(tl.int32, bitcast=True) >= threshold


# A caller's key has a function's constants only where that has a key of its own by then: else each process would
# compile callers under one of two keys, as its threads come. (Under Triton's interpreter there are no keys.)
getattr(keep_tile, "cache_key", None)


@triton.jit(do_not_specialize=["n"])
def _token_keys(out, seed, step, rows, positions, n, block: tl.constexpr):
    i = tl.program_id(0) * block + tl.arange(0, block)
    inside = i < n
    row = tl.load(rows + i, mask=inside, other=0).to(tl.uint32, bitcast=True)
    position = tl.load(positions + i, mask=inside, other=0).to(tl.uint32, bitcast=True)
    key = _mixed(tl.load(seed).to(tl.uint32, bitcast=True) ^ FIRST_KEY)
    key = _mixed(key ^ tl.load(step).to(tl.uint32, bitcast=True))
    key = _mixed(_mixed(key ^ row) ^ position)
    tl.store(out + i, key.to(tl.int32, bitcast=True), mask=inside)


def token_keys(seed: torch.Tensor, step: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """See trainables.models.dropout_mask.token_keys; seed and step are scalars."""
    rows, positions = (t.contiguous() for t in torch.broadcast_tensors(rows, positions))
    keys = torch.empty(rows.numel(), dtype=torch.int32, device=rows.device)
    _token_keys[(triton.cdiv(len(keys), KEYS),)](keys, seed, step, rows, positions, len(keys), block=KEYS)
    return keys


def compilations() -> Iterator[Callable[[], object]]:
    """What compiles the kernel of tokens' keys, which every step with dropout begins with."""
    yield partial(_token_keys.warmup, *(torch.int32,) * 5, 1, grid=(1,), block=KEYS)


@triton.jit(do_not_specialize=["module", "threshold", "n_tokens"])
def _dropped(
    out, x, keys, module, threshold, scale, n_tokens, n_channels, row_block: tl.constexpr, column_block: tl.constexpr
):
    t = tl.program_id(0) * row_block + tl.arange(0, row_block)
    c = tl.program_id(1) * column_block + tl.arange(0, column_block)
    inside = (t < n_tokens)[:, None] & (c < n_channels)[None, :]
    at = t.to(tl.int64)[:, None] * n_channels + c[None, :]
    keep = keep_tile(tl.load(keys + t, mask=t < n_tokens, other=0), module, c, threshold)
    value = tl.load(x + at, mask=inside & keep, other=0.0).to(tl.float32) * scale
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


def dropped(x: torch.Tensor, mask: "Mask") -> torch.Tensor:
    """See trainables.models.dropout_mask.dropped."""
    x = x.contiguous()
    out = torch.empty_like(x)
    rows, columns = 4, 512
    grid = (triton.cdiv(x.shape[0], rows), triton.cdiv(x.shape[1], columns))
    _dropped[grid](
        out, x, mask.keys, mask.module, mask.threshold, mask.scale, *x.shape, row_block=rows, column_block=columns
    )
    return out
