"""trainables.models.dropout_mask as Triton kernels: the same bits, one kernel for each operation."""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from trainables.models.dropout_mask import Mask

FIRST_KEY = tl.constexpr(0x3C6EF372)


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


@triton.jit
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
    _token_keys[(triton.cdiv(len(keys), 256),)](keys, seed, step, rows, positions, len(keys), block=256)
    return keys


@triton.jit(do_not_specialize=["module", "threshold"])
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
    _dropped[grid](out, x, *_numbers(mask), *x.shape, row_block=rows, column_block=columns)
    return out


@triton.jit(do_not_specialize=["module", "threshold"])
def _add_product(
    d_x, d_low, a, keys, module, threshold, scale, n_tokens, n_channels,
    n_ranks: tl.constexpr, rank_block: tl.constexpr, row_block: tl.constexpr, column_block: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * row_block + tl.arange(0, row_block)
    c = tl.program_id(1) * column_block + tl.arange(0, column_block)
    of_token, of_channel = (t < n_tokens)[:, None], (c < n_channels)[None, :]
    product = tl.zeros((row_block, column_block), dtype=tl.float32)
    for first in range(0, n_ranks, rank_block):
        r = first + tl.arange(0, rank_block)
        of_rank = r < n_ranks
        low_tile = tl.load(d_low + t[:, None] * n_ranks + r[None, :], mask=of_token & of_rank[None, :], other=0.0)
        a_tile = tl.load(a + r[:, None] * n_channels + c[None, :], mask=of_rank[:, None] & of_channel, other=0.0)
        product = tl.dot(low_tile, a_tile, product, input_precision="ieee")
    keep = keep_tile(tl.load(keys + t, mask=t < n_tokens, other=0), module, c, threshold)
    at = d_x + t.to(tl.int64)[:, None] * n_channels + c[None, :]
    total = tl.load(at, mask=of_token & of_channel, other=0.0).to(tl.float32) + tl.where(keep, product * scale, 0.0)
    tl.store(at, total.to(d_x.dtype.element_ty), mask=of_token & of_channel)


def add_product_(d_x: torch.Tensor, d_low: torch.Tensor, a: torch.Tensor, mask: "Mask") -> torch.Tensor:
    """See trainables.models.dropout_mask.add_product_."""
    rows, columns = 32, 128
    grid = (triton.cdiv(d_x.shape[0], rows), triton.cdiv(d_x.shape[1], columns))
    sizes = {"n_ranks": len(a), "rank_block": 16, "row_block": rows, "column_block": columns}
    _add_product[grid](d_x, d_low, a, *_numbers(mask), *d_x.shape, **sizes)
    return d_x


def _numbers(mask: "Mask") -> tuple[torch.Tensor, int, int, float]:
    """A Mask as the kernels take it."""
    return mask.keys, mask.module, mask.threshold, mask.scale
