"""The adapter's gradients at its input as one Triton kernel that draws the dropout's mask itself."""

import torch
import triton
import triton.language as tl

from trainables.models.dropout_mask import Mask
from trainables.models.mask_kernels import keep_tile

MAX_RANK = 64
"""All ranks of a tile are held in registers."""
N_PROGRAMS = 264
"""About as many as two for each multiprocessor of the GPU that the sizes were chosen on."""
ROWS, COLUMNS = 64, 64


@triton.jit(do_not_specialize=["module", "threshold"])
def _input_gradients(
    d_a, d_x, d_low, a, x, scaling, keys, module, threshold, scale, n_tokens, n_channels, rows_of_program,
    n_ranks: tl.constexpr, rank_block: tl.constexpr, row_block: tl.constexpr, column_block: tl.constexpr,
    n_tiles: tl.constexpr, is_masked: tl.constexpr, has_d_x: tl.constexpr, is_tensor: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * column_block + tl.arange(0, column_block)
    r = tl.arange(0, rank_block)
    of_channel, of_rank = (c < n_channels)[None, :], r < n_ranks
    a_at = r.to(tl.int64)[:, None] * n_channels + c[None, :]
    a_tile = tl.load(a + a_at, mask=of_rank[:, None] & of_channel, other=0.0)
    total = tl.zeros((rank_block, column_block), dtype=tl.float32)
    first = tl.program_id(1) * rows_of_program
    for tile in range(n_tiles):
        t = first + tile * row_block + tl.arange(0, row_block)
        of_token = (t < n_tokens) & (t < first + rows_of_program)
        inside = of_token[:, None] & of_channel
        at = t.to(tl.int64)[:, None] * n_channels + c[None, :]
        low_tile = tl.load(
            d_low + t[:, None] * n_ranks + r[None, :], mask=of_token[:, None] & of_rank[None, :], other=0.0
        )
        value = tl.load(x + at, mask=inside, other=0.0)
        if is_masked:
            keep = keep_tile(tl.load(keys + t, mask=of_token, other=0), module, c, threshold)
            value = tl.where(keep, value.to(tl.float32) * scale, 0.0).to(value.dtype)
        total = tl.dot(tl.trans(low_tile), value, total, input_precision="ieee")
        if has_d_x:
            product = tl.dot(low_tile, a_tile, input_precision="ieee")
            if is_masked:
                product = tl.where(keep, product * scale, 0.0)
            product += tl.load(d_x + at, mask=inside, other=0.0).to(tl.float32)
            tl.store(d_x + at, product.to(d_x.dtype.element_ty), mask=inside)
    factor = tl.load(scaling) if is_tensor else scaling
    d_a += tl.program_id(1).to(tl.int64) * n_ranks * n_channels
    tl.store(d_a + a_at, total * factor, mask=of_rank[:, None] & of_channel)


def input_gradients_(
    d_x: torch.Tensor | None,
    d_low: torch.Tensor,
    a: torch.Tensor,
    x: torch.Tensor,
    mask: Mask | None,
    scaling: float | torch.Tensor,
) -> torch.Tensor:
    """See trainables.models.lora_linear.input_gradients_; the gradient to A is float32.

    Several programs share the tokens of a few channels where there are few; their sums are added up in a fixed order.
    """
    (n_tokens, n_channels), n_ranks = x.shape, len(a)
    n_columns = triton.cdiv(n_channels, COLUMNS)
    n_parts = max(1, min(N_PROGRAMS // n_columns, triton.cdiv(n_tokens, ROWS)))
    n_tiles = triton.cdiv(triton.cdiv(n_tokens, ROWS), n_parts)
    d_a = torch.empty(n_parts, n_ranks, n_channels, dtype=torch.float32, device=x.device)
    numbers = (mask.keys, mask.module, mask.threshold, mask.scale) if mask else (x, 0, 0, 1.0)
    _input_gradients[(n_columns, n_parts)](
        d_a, d_x if d_x is not None else x, d_low, a, x.contiguous(), scaling, *numbers, n_tokens, n_channels,
        n_tiles * ROWS, n_ranks=n_ranks, rank_block=max(16, triton.next_power_of_2(n_ranks)), row_block=ROWS,
        column_block=COLUMNS, n_tiles=n_tiles, is_masked=mask is not None, has_d_x=d_x is not None,
        is_tensor=torch.is_tensor(scaling), num_stages=1 if x.dtype == torch.float32 else 3,
    )  # fmt: skip
    return d_a.sum(dim=0) if n_parts > 1 else d_a[0]
