"""trainables.models.block_ops as Triton kernels: one kernel for each forward and each backward pass."""

import torch
import triton
import triton.language as tl

ELEMENTS = 2048
"""Of a tile of several short rows."""


@triton.jit
def _tile(n_rows, width, row_block: tl.constexpr, width_block: tl.constexpr):
    """Places of this program's rows, and which of them exist; columns."""
    rows = tl.program_id(0) * row_block + tl.arange(0, row_block)
    columns = tl.arange(0, width_block)
    inside = (rows < n_rows)[:, None] & (columns < width)[None, :]
    return rows.to(tl.int64)[:, None] * width + columns[None, :], inside, columns


@triton.jit(do_not_specialize=["n_rows"])
def _rms_norm(
    out, x, weight, epsilon, offset, n_rows, width,
    is_offset: tl.constexpr, row_block: tl.constexpr, width_block: tl.constexpr,
):  # fmt: skip
    at, inside, columns = _tile(n_rows, width, row_block, width_block)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    inverse = tl.rsqrt(tl.sum(value * value, axis=1) / width + epsilon)
    quotient = value * inverse[:, None]
    if is_offset:
        quotient = (offset + w) * quotient
    else:
        quotient = w * quotient.to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + at, quotient.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n_rows"])
def _rms_norm_gradient(
    d_x, d_y, x, weight, epsilon, offset, n_rows, width, row_block: tl.constexpr, width_block: tl.constexpr
):
    at, inside, columns = _tile(n_rows, width, row_block, width_block)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    of_quotient = tl.load(d_y + at, mask=inside, other=0.0).to(tl.float32) * (offset + w)
    inverse = tl.rsqrt(tl.sum(value * value, axis=1) / width + epsilon)[:, None]
    quotient = value * inverse
    along = tl.sum(of_quotient * quotient, axis=1)[:, None] / width
    tl.store(d_x + at, ((of_quotient - quotient * along) * inverse).to(d_x.dtype.element_ty), mask=inside)


def _rows(x: torch.Tensor) -> tuple[tuple[int], dict[str, int], dict[str, int]]:
    """Grid, sizes and launch options for all rows of x; they lie one after the other, in whatever order."""
    width = x.shape[-1]
    width_block = triton.next_power_of_2(width)
    row_block = max(1, ELEMENTS // width_block)
    n_rows = x.numel() // width
    sizes = {"n_rows": n_rows, "width": width, "row_block": row_block, "width_block": width_block}
    return (triton.cdiv(n_rows, row_block),), sizes, {"num_warps": 4 if width_block <= 2048 else 8}


def _dense(x: torch.Tensor) -> torch.Tensor:
    """x itself where its rows lie one after the other (heads and positions may be exchanged), else a copy."""
    if x.is_contiguous() or (x.dim() == 4 and x.transpose(1, 2).is_contiguous()):
        return x
    return x.contiguous()


def _like(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """x itself where it lies in memory as `other` does, else a copy that does."""
    return x if x.stride() == other.stride() else torch.empty_like(other, dtype=x.dtype).copy_(x)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, offset: float) -> torch.Tensor:
    """See trainables.models.block_ops.RMSNorm."""
    x = _dense(x)
    out = torch.empty_like(x)
    grid, sizes, options = _rows(x)
    _rms_norm[grid](out, x, weight, epsilon, offset, is_offset=offset != 0, **sizes, **options)
    return out


def rms_norm_gradient(
    d_y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, epsilon: float, offset: float
) -> torch.Tensor:
    """The gradient to x."""
    x = _dense(x)
    d_x = torch.empty_like(x)
    grid, sizes, options = _rows(x)
    _rms_norm_gradient[grid](d_x, _like(d_y, x), x, weight, epsilon, offset, **sizes, **options)
    return d_x


@triton.jit
def _turn_heads(
    out, x, cos_1, cos_2, sin_1, sin_2, n_heads, out_stride, x_stride,
    half: tl.constexpr, is_backward: tl.constexpr, head_block: tl.constexpr, half_block: tl.constexpr,
):  # fmt: skip
    """One token's heads of queries or keys; out and x point to the token."""
    heads, columns = tl.arange(0, head_block), tl.arange(0, half_block)
    inside = (heads < n_heads)[:, None] & (columns < half)[None, :]
    at = x + heads[:, None] * x_stride + columns[None, :]
    x_1 = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    x_2 = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
    if is_backward:
        out_1, out_2 = x_1 * cos_1 + x_2 * sin_2, x_2 * cos_2 - x_1 * sin_1
    else:
        out_1, out_2 = x_1 * cos_1 - x_2 * sin_1, x_2 * cos_2 + x_1 * sin_2
    to = out + heads[:, None] * out_stride + columns[None, :]
    tl.store(to, out_1.to(out.dtype.element_ty), mask=inside)
    tl.store(to + half, out_2.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["length"])
def _rotary(
    out_q, out_k, q, k, cos, sin, length, q_heads, k_heads,
    q_of_row, q_of_head, q_of_token, k_of_row, k_of_head, k_of_token, angles_of_row,
    half: tl.constexpr, is_backward: tl.constexpr,
    q_block: tl.constexpr, k_block: tl.constexpr, half_block: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    row, position = token // length, token % length
    columns = tl.arange(0, half_block)
    at = row * angles_of_row + position * 2 * half + columns
    cos_1 = tl.load(cos + at, mask=columns < half, other=0.0).to(tl.float32)[None, :]
    cos_2 = tl.load(cos + at + half, mask=columns < half, other=0.0).to(tl.float32)[None, :]
    sin_1 = tl.load(sin + at, mask=columns < half, other=0.0).to(tl.float32)[None, :]
    sin_2 = tl.load(sin + at + half, mask=columns < half, other=0.0).to(tl.float32)[None, :]
    _turn_heads(
        out_q + token * q_heads * 2 * half, q + row * q_of_row + position * q_of_token,
        cos_1, cos_2, sin_1, sin_2, q_heads, 2 * half, q_of_head, half, is_backward, q_block, half_block,
    )  # fmt: skip
    _turn_heads(
        out_k + token * k_heads * 2 * half, k + row * k_of_row + position * k_of_token,
        cos_1, cos_2, sin_1, sin_2, k_heads, 2 * half, k_of_head, half, is_backward, k_block, half_block,
    )  # fmt: skip


def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, backward: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """See trainables.models.block_ops.Rotary; the results lie in memory token by token."""
    batch, q_heads, length, width = q.shape
    q, k = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k))
    cos, sin = cos.contiguous(), sin.contiguous()
    outs = [t.new_empty(batch, length, t.shape[1], width).transpose(1, 2) for t in (q, k)]
    sizes = {"q_block": q_heads, "k_block": k.shape[1], "half_block": width // 2}
    blocks = {name: triton.next_power_of_2(size) for name, size in sizes.items()}
    angles_of_row = length * width if len(cos) > 1 else 0
    _rotary[(batch * length,)](
        *outs, q, k, cos, sin, length, q_heads, k.shape[1], *q.stride()[:3], *k.stride()[:3], angles_of_row,
        half=width // 2, is_backward=backward, **blocks,
    )  # fmt: skip
    return outs[0], outs[1]


@triton.jit
def _tanh(x):
    return 2 / (1 + tl.exp(-2 * x)) - 1


@triton.jit
def _gated(out, gate, up, n, is_silu: tl.constexpr, block: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    g = tl.load(gate + i, mask=i < n, other=0.0).to(tl.float32)
    u = tl.load(up + i, mask=i < n, other=0.0).to(tl.float32)
    if is_silu:
        active = g * tl.sigmoid(g)
    else:
        active = 0.5 * g * (1 + _tanh(0.7978845608028654 * (g + 0.044715 * g * g * g)))
    active = active.to(out.dtype.element_ty).to(tl.float32)  # as where the activation is a kernel of its own
    tl.store(out + i, (active * u).to(out.dtype.element_ty), mask=i < n)


@triton.jit
def _gated_gradient(d_gate, d_up, d_y, gate, up, n, is_silu: tl.constexpr, block: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    g = tl.load(gate + i, mask=i < n, other=0.0).to(tl.float32)
    u = tl.load(up + i, mask=i < n, other=0.0).to(tl.float32)
    d = tl.load(d_y + i, mask=i < n, other=0.0).to(tl.float32)
    if is_silu:
        sigmoid = tl.sigmoid(g)
        active, slope = g * sigmoid, sigmoid * (1 + g * (1 - sigmoid))
    else:
        tanh = _tanh(0.7978845608028654 * (g + 0.044715 * g * g * g))
        active = 0.5 * g * (1 + tanh)
        slope = 0.5 * (1 + tanh) + 0.5 * g * (1 - tanh * tanh) * 0.7978845608028654 * (1 + 0.134145 * g * g)
    tl.store(d_gate + i, (d * u * slope).to(d_gate.dtype.element_ty), mask=i < n)
    tl.store(d_up + i, (d * active).to(d_up.dtype.element_ty), mask=i < n)


def gated(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """See trainables.models.block_ops.Gated."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    _gated[(triton.cdiv(out.numel(), 1024),)](out, gate, up, out.numel(), is_silu=activation == "silu", block=1024)
    return out


def gated_gradient(
    d_y: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients to gate and up."""
    d_y, gate, up = d_y.contiguous(), gate.contiguous(), up.contiguous()
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
    grid, n = (triton.cdiv(gate.numel(), 1024),), gate.numel()
    _gated_gradient[grid](d_gate, d_up, d_y, gate, up, n, is_silu=activation == "silu", block=1024)
    return d_gate, d_up
