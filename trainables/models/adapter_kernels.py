"""The adapter's products that meet its input, as Triton kernels that draw the dropout's mask on the way.

Where one dimension of a result is small, several programs share a sum. Each writes its part, and the parts are added
up in a fixed order: equal inputs give equal bits. What changes from batch to batch is not specialized, see
trainables.models.mask_kernels.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl

from trainables.models.branches import later
from trainables.models.dropout_mask import Mask
from trainables.models.mask_kernels import keep_tile

MAX_RANK = 64
"""All ranks of a tile are held in registers."""
N_PROGRAMS = 264
"""About as many as two for each multiprocessor of the GPU that the sizes were chosen on."""
ROWS, COLUMNS, LOW_COLUMNS = 64, 64, 128
"""Of a tile."""
RANK_BLOCKS = (16, MAX_RANK)
"""Ranks of a tile. Of each there are two kernels, for as many ranks and for fewer, not one to compile for each rank."""
SUM_OPTIONS = {"block": 256, "num_warps": 2}
PARTS = ["rows_of_program", "columns_of_program", "n_tiles", "n_parts"]
UNSPECIALIZED = ["module", "threshold", "n_tokens", "n_ranks", "n", *PARTS]


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _sum_parts(out, parts, scaling, n_parts, n, block: tl.constexpr, is_tensor: tl.constexpr):
    i = tl.program_id(0) * block + tl.arange(0, block)
    total = tl.zeros((block,), dtype=tl.float32)
    for _ in range(n_parts):
        total += tl.load(parts + i, mask=i < n, other=0.0)
        parts += n
    factor = tl.load(scaling) if is_tensor else scaling
    tl.store(out + i, (total * factor).to(out.dtype.element_ty), mask=i < n)


def _sum(parts: torch.Tensor, dtype: torch.dtype, scaling: float | torch.Tensor) -> torch.Tensor:
    """scaling * the sum over the first dimension, rounded once."""
    out = torch.empty(parts.shape[1:], dtype=dtype, device=parts.device)
    n, is_tensor = out.numel(), torch.is_tensor(scaling)
    of_kernel = {"is_tensor": is_tensor} | SUM_OPTIONS
    _sum_parts[(triton.cdiv(n, SUM_OPTIONS["block"]),)](out, parts, scaling, len(parts), n, **of_kernel)
    return out


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _low_product(
    low, x, a, keys, module, threshold, scale, n_tokens, n_channels, columns_of_program, n_tiles, n_ranks,
    is_full: tl.constexpr, rank_block: tl.constexpr, row_block: tl.constexpr, column_block: tl.constexpr,
):  # fmt: skip
    if is_full:
        n_ranks = rank_block
    t = tl.program_id(0) * row_block + tl.arange(0, row_block)
    r = tl.arange(0, rank_block)
    of_token, of_rank = t < n_tokens, r < n_ranks
    of_keys = tl.load(keys + t, mask=of_token, other=0)
    total = tl.zeros((row_block, rank_block), dtype=tl.float32)
    first = tl.program_id(1) * columns_of_program
    for tile in range(n_tiles):
        c = first + tile * column_block + tl.arange(0, column_block)
        of_channel = (c < n_channels)[None, :]
        at = t.to(tl.int64)[:, None] * n_channels + c[None, :]
        value = tl.load(x + at, mask=of_token[:, None] & of_channel, other=0.0)
        keep = keep_tile(of_keys, module, c, threshold)
        value = tl.where(keep, value.to(tl.float32) * scale, 0.0).to(value.dtype)
        a_at = r.to(tl.int64)[:, None] * n_channels + c[None, :]
        a_tile = tl.load(a + a_at, mask=of_rank[:, None] & of_channel, other=0.0)
        total = tl.dot(value, tl.trans(a_tile), total, input_precision="ieee")
    low += tl.program_id(1).to(tl.int64) * n_tokens * n_ranks
    tl.store(low + t[:, None] * n_ranks + r[None, :], total, mask=of_token[:, None] & of_rank[None, :])


def low_product(x: torch.Tensor, a: torch.Tensor, mask: Mask) -> torch.Tensor:
    """dropout(x) a^T of x (tokens, inputs) and a (rank, inputs): (tokens, rank), in their dtype."""
    (n_tokens, n_channels), n_ranks = x.shape, len(a)
    n_rows, n_columns = triton.cdiv(n_tokens, ROWS), triton.cdiv(n_channels, LOW_COLUMNS)
    n_tiles = triton.cdiv(n_columns, max(1, N_PROGRAMS // n_rows))
    n_parts = triton.cdiv(n_columns, n_tiles)
    parts = torch.empty(n_parts, n_tokens, n_ranks, dtype=torch.float32, device=x.device)
    _low_product[(n_rows, n_parts)](
        parts, x.contiguous(), a, mask.keys, mask.module, mask.threshold, mask.scale, n_tokens, n_channels,
        n_tiles * LOW_COLUMNS, n_tiles, n_ranks, **_sizes(n_ranks), row_block=ROWS, column_block=LOW_COLUMNS,
        num_stages=_stages(x),
    )  # fmt: skip
    return _sum(parts, x.dtype, 1.0)


def _sizes(n_ranks: int) -> dict[str, int]:
    """What a kernel is compiled for: its block of ranks, and whether they fill it."""
    block = min(block for block in RANK_BLOCKS if n_ranks <= block)
    return {"rank_block": block, "is_full": n_ranks == block}


def _stages(x: torch.Tensor) -> int:
    """Tiles that are on their way at once; in float32 several would fill a small GPU's shared memory."""
    return 1 if x.dtype == torch.float32 else 3


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _input_gradients(
    d_a, d_x, d_low, a, x, keys, module, threshold, scale, n_tokens, n_channels, rows_of_program, n_tiles, n_ranks,
    is_full: tl.constexpr, rank_block: tl.constexpr, row_block: tl.constexpr, column_block: tl.constexpr,
    is_masked: tl.constexpr, has_d_x: tl.constexpr,
):  # fmt: skip
    if is_full:
        n_ranks = rank_block
    c = tl.program_id(0) * column_block + tl.arange(0, column_block)
    r = tl.arange(0, rank_block)
    of_channel, of_rank = (c < n_channels)[None, :], r < n_ranks
    a_at = r.to(tl.int64)[:, None] * n_channels + c[None, :]
    a_tile = tl.load(a + a_at, mask=of_rank[:, None] & of_channel, other=0.0)
    total = tl.zeros((rank_block, column_block), dtype=tl.float32)
    first = tl.program_id(1) * rows_of_program
    for tile in range(n_tiles):
        t = first + tile * row_block + tl.arange(0, row_block)
        of_token = t < n_tokens
        inside = of_token[:, None] & of_channel
        at = t.to(tl.int64)[:, None] * n_channels + c[None, :]
        low_at = t[:, None] * n_ranks + r[None, :]
        low_tile = tl.load(d_low + low_at, mask=of_token[:, None] & of_rank[None, :], other=0.0)
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
    d_a += tl.program_id(1).to(tl.int64) * n_ranks * n_channels
    tl.store(d_a + a_at, total, mask=of_rank[:, None] & of_channel)


def input_gradients_(
    d_x: torch.Tensor | None,
    d_low: torch.Tensor,
    a: torch.Tensor,
    x: torch.Tensor,
    mask: Mask | None,
    scaling: float | torch.Tensor,
) -> torch.Tensor:
    """See trainables.models.lora_linear.input_gradients_; the gradient to A is float32."""
    (n_tokens, n_channels), n_ranks = x.shape, len(a)
    n_rows, n_columns = triton.cdiv(n_tokens, ROWS), triton.cdiv(n_channels, COLUMNS)
    n_tiles = triton.cdiv(n_rows, max(1, N_PROGRAMS // n_columns))
    n_parts = triton.cdiv(n_rows, n_tiles)
    parts = torch.empty(n_parts, n_ranks, n_channels, dtype=torch.float32, device=x.device)
    of_mask = (mask.keys, mask.module, mask.threshold, mask.scale) if mask else (x, 0, 0, 1.0)
    _input_gradients[(n_columns, n_parts)](
        parts, d_x if d_x is not None else x, d_low, a, x.contiguous(), *of_mask, n_tokens, n_channels,
        n_tiles * ROWS, n_tiles, n_ranks, **_sizes(n_ranks), row_block=ROWS, column_block=COLUMNS,
        is_masked=mask is not None, has_d_x=d_x is not None, num_stages=_stages(x),
    )  # fmt: skip
    return later(lambda: _sum(parts, torch.float32, scaling))


def compilations(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    """What compiles these kernels for adapters of any rank, with dropout and without, on inputs of a dtype.

    The sums and what dropout needs come first. What channels that are no multiple of 16 need is left to its first use.
    """
    for out, scaling in ((dtype, 1.0), (torch.float32, 1.0), (torch.float32, torch.float32)):
        of_sum = {"grid": (1,), "is_tensor": scaling == torch.float32} | SUM_OPTIONS
        yield partial(_sum_parts.warmup, out, torch.float32, scaling, 1, 1, **of_sum)
    stages = _stages(torch.empty((), dtype=dtype))
    sizes = [{"rank_block": block, "is_full": is_full} for block in RANK_BLOCKS for is_full in (False, True)]
    mask, n = (torch.int32, 1, 1, 1.0), 1024  # any tensor of that dtype, any numbers: they are not specialized
    for is_masked in (True, False):
        for size in sizes:
            of_kernel = {"grid": (1,), "row_block": ROWS, "num_stages": stages} | size
            if is_masked:
                low = (torch.float32, dtype, dtype, *mask, n, n, n, n, n)
                yield partial(_low_product.warmup, *low, column_block=LOW_COLUMNS, **of_kernel)
            of_mask = mask if is_masked else (dtype, 0, 0, 1.0)
            gradients = (torch.float32, dtype, dtype, dtype, dtype, *of_mask, n, n, n, n, n)
            for has_d_x in (True, False):
                own = {"is_masked": is_masked, "has_d_x": has_d_x, "column_block": COLUMNS}
                yield partial(_input_gradients.warmup, *gradients, **own, **of_kernel)
