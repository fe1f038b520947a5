"""Attention of one new token a row over a static cache, as one Triton kernel that reads the row's own columns alone."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl

COLUMNS = 64
"""Of a tile."""
USUAL_HEAD_DIMS = (64, 128)
STRIDES = ["q_row", "q_head", "k_row", "k_head", "v_row", "v_head"]
UNSPECIALIZED = [*STRIDES, "n_columns", "window", "group"]
"""All sizes but a head's, whose being a multiple of 16 lets a thread load 16 bytes at a time."""


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _attend(
    out, q, k, v, keys, values, starts, at, scale, q_row, q_head, k_row, k_head, v_row, v_head, n_columns, window,
    group, head_dim, column_block: tl.constexpr, dim_block: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    n_heads, of_group = tl.num_programs(1), head // group
    d = tl.arange(0, dim_block)
    inside = d < head_dim
    query = tl.load(q + row * q_row + head * q_head + d, mask=inside, other=0.0).to(tl.float32) * scale
    new_key = tl.load(k + row * k_row + of_group * k_head + d, mask=inside, other=0.0)
    new_value = tl.load(v + row * v_row + of_group * v_head + d, mask=inside, other=0.0)
    cached = (row * (n_heads // group) + of_group) * n_columns * head_dim
    last = tl.load(at)
    if head % group == 0:
        tl.store(keys + cached + last * head_dim + d, new_key, mask=inside)
        tl.store(values + cached + last * head_dim + d, new_value, mask=inside)
    largest = tl.sum(query * new_key.to(tl.float32))
    total = 1.0
    read = new_value.to(tl.float32)
    for first in range(tl.maximum(tl.load(starts + row), last - window + 1), last, column_block):
        columns = first + tl.arange(0, column_block)
        seen = columns < last
        places = cached + columns[:, None] * head_dim + d[None, :]
        there = seen[:, None] & inside[None, :]
        tile = tl.load(keys + places, mask=there, other=0.0).to(tl.float32)
        scores = tl.where(seen, tl.sum(tile * query[None, :], axis=1), float("-inf"))
        before, largest = largest, tl.maximum(largest, tl.max(scores))
        shares, kept = tl.exp(scores - largest), tl.exp(before - largest)
        tile = tl.load(values + places, mask=there, other=0.0).to(tl.float32)
        read = read * kept + tl.sum(tile * shares[:, None], axis=0)
        total = total * kept + tl.sum(shares)
    tl.store(out + (row * n_heads + head) * head_dim + d, (read / total).to(out.dtype.element_ty), mask=inside)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    starts: torch.Tensor,
    at: torch.Tensor,
    window: int | None,
    scale: float,
) -> torch.Tensor:
    """Write the new token's key and value into the cache, and read for its query.

    Args:
        query: (rows, heads, 1, head_dim).
        key, value: (rows, heads / group, 1, head_dim), of one dtype with the query.
        keys, values: (rows, heads / group, columns, head_dim), the cache, which is written to.
        starts: (rows,) int64, each row's first column.
        at: (1,) int64, the new token's column.
        window: columns that a token sees, its own included; None for all.
        scale: factor on the products of query and keys.
    Returns:
        (rows, 1, heads, head_dim) of the query's dtype; sums are in float32.
    """
    n_rows, n_heads, _, head_dim = query.shape
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    out = torch.empty(n_rows, 1, n_heads, head_dim, dtype=query.dtype, device=query.device)
    n_columns = keys.shape[2]
    strides = [x.stride(dim) for x in (query, key, value) for dim in (0, 1)]
    _attend[(n_rows, n_heads)](
        out, query, key, value, keys, values, starts, at, scale, *strides, n_columns, window or n_columns,
        n_heads // key.shape[1], head_dim, column_block=COLUMNS, dim_block=triton.next_power_of_2(head_dim),
    )  # fmt: skip
    return out


def compilations(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    """What compiles the kernel for heads of USUAL_HEAD_DIMS of a dtype; other heads are left to their first use."""
    pointers, places = (dtype,) * 6, (torch.int64, torch.int64)
    sizes = (1,) * len(UNSPECIALIZED)  # any numbers: they are not specialized
    for head_dim in USUAL_HEAD_DIMS:
        of_kernel = {"grid": (1, 1), "column_block": COLUMNS, "dim_block": head_dim}
        yield partial(_attend.warmup, *pointers, *places, 1.0, *sizes, head_dim, **of_kernel)
