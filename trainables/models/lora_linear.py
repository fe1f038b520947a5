"""A frozen linear module with a LoRA adapter as one autograd function, and its forward pass for inference."""

from collections.abc import Sequence
from typing import Any

import bitsandbytes
import torch
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from trainables.models.branches import beside, later
from trainables.models.dropout_mask import Mask, drawn_for, dropped
from trainables.models.kernels import can_run_on

try:
    from trainables.models import adapter_kernels, nf4_kernels
except ImportError:  # Triton comes with PyTorch for CUDA only
    adapter_kernels = nf4_kernels = None


Matrices = tuple[torch.Tensor, torch.Tensor]
"""scaling * A (rank, inputs) and B (outputs, rank) of a module, rounded to the dtype of its products."""


@torch.no_grad()
def rounded_matrices(
    of_a: Sequence[torch.Tensor], of_b: Sequence[torch.Tensor], scaling: float | torch.Tensor, dtype: torch.dtype
) -> list[Matrices]:
    """The Matrices of modules, by a few kernels for all of them together.

    Args:
        of_a, of_b: A and B of each module, float32.
        scaling: factor on B A.
    """
    scaled = torch._foreach_mul(of_a, scaling)  # as torch.optim multiplies many tensors at once
    return list(zip(_rounded(scaled, dtype), _rounded(of_b, dtype), strict=True))


def _rounded(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> Sequence[torch.Tensor]:
    if not tensors or tensors[0].dtype == dtype:
        return tensors
    rounded = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(rounded, tensors)
    return rounded


def read_through(x: torch.Tensor, matrices: Matrices, base: torch.nn.Module) -> torch.Tensor:
    """LoraLinear's forward for inference: two products, and no copies of x or y.

    Args:
        x: (..., inputs), of the matrices' dtype.
        base: the frozen linear module.
    Returns:
        (..., outputs), in x's dtype.
    """
    scaled_a, b = matrices
    low = beside(lambda: x.flatten(0, -2).mm(scaled_a.T))  # (tokens, rank)
    y = base(x)
    y.flatten(0, -2).addmm_(low(), b.T)
    return y


class LoraLinear(torch.autograd.Function):
    """A frozen linear module with a LoRA adapter (Hu et al. 2021, arXiv:2106.09685, section 4.1).

    y = W x + scaling * B A dropout(x). The adapter's products are in x's dtype with sums in float32, as autocast
    computes them; its matrices stay float32, and so do their gradients.
    Saved for the backward pass: x, scaling * A dropout(x), scaling * A and B, all in x's dtype; of the dropout its
    counters only.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        matrices: Matrices,
        base: torch.nn.Module,
        scaling: float | torch.Tensor,
        mask: Mask | None,
    ) -> torch.Tensor:
        """x: (..., inputs); a: (rank, inputs); b: (outputs, rank). Returns (..., outputs) in x's dtype.

        The values are those of `matrices`, which are a and b rounded to x's dtype; the gradients are to a and b.
        """
        flat = x.flatten(0, -2)
        scaled_a, rounded_b = matrices
        of_adapter = beside(lambda: low_product(flat, scaled_a, mask))
        y = base(x)
        low = of_adapter()
        y.flatten(0, -2).addmm_(low, rounded_b.T)
        ctx.save_for_backward(flat, low, scaled_a, rounded_b)
        ctx.base, ctx.scaling, ctx.mask, ctx.master_dtype = base, scaling, mask, a.dtype
        return y

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Where branches are open, the gradients to a and b are as from trainables.models.branches.later."""
        x, low, scaled_a, b = ctx.saved_tensors
        dy = upstream.flatten(0, -2)
        d_low = beside(lambda: dy.mm(b))  # (tokens, rank)
        d_b = later(lambda: _product(dy.T, low, ctx.master_dtype))
        d_x = _through_base(ctx.base, dy) if ctx.needs_input_grad[0] else None
        d_a = input_gradients_(d_x, d_low(), scaled_a, x, ctx.mask, ctx.scaling, ctx.master_dtype)
        if d_x is not None:
            d_x = d_x.view(*upstream.shape[:-1], -1)
        return d_x, d_a, d_b, None, None, None, None


def low_product(x: torch.Tensor, a: torch.Tensor, mask: Mask | None) -> torch.Tensor:
    """dropout(x) a^T of x (tokens, inputs) and a (rank, inputs): (tokens, rank)."""
    if mask and adapter_kernels and can_run_on(x) and len(a) <= adapter_kernels.MAX_RANK:
        return adapter_kernels.low_product(x, a, mask)
    return dropped(x, mask).mm(a.T)


def input_gradients_(
    d_x: torch.Tensor | None,
    d_low: torch.Tensor,
    a: torch.Tensor,
    x: torch.Tensor,
    mask: Mask | None,
    scaling: float | torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """What reaches A and the adapter's input, given what reaches A's output.

    Args:
        d_x: (tokens, inputs), to which dropout(d_low a) is added in place; None where x needs no gradient.
        d_low: (tokens, rank).
        a: scaling * A, (rank, inputs), of the dtype of all tensors.
        x: (tokens, inputs).
        dtype: of the result.
    Returns:
        scaling * d_low^T dropout(x), the gradient to A; as from trainables.models.branches.later where that is open.
    """
    if adapter_kernels and can_run_on(x) and len(a) <= adapter_kernels.MAX_RANK:
        return adapter_kernels.input_gradients_(d_x, d_low, a, x, mask, scaling)
    keep = drawn_for(x, mask)
    d_a = _product(d_low.T, dropped(x, mask, keep), dtype).mul_(scaling)
    if d_x is not None:
        d_x.add_(dropped(d_low.mm(a), mask, keep))
    return d_a


def _product(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """left right, summed and kept in a `dtype` at least as wide as theirs."""
    if left.is_cuda and left.dtype != dtype:
        return torch.mm(left, right, out_dtype=dtype)
    return left.to(dtype).mm(right.to(dtype))


def _through_base(base: torch.nn.Module, dy: torch.Tensor) -> torch.Tensor:
    """dy (tokens, outputs) through a frozen Conv1D (inputs, outputs), nn.Linear (outputs, inputs) or 4-bit module."""
    weight = full_weight(base)
    if weight is not None:
        return dy.mm(weight.to(dy.dtype))
    return dy.mm(base.weight.T if is_conv1d(base) else base.weight)


def is_conv1d(module: torch.nn.Module) -> bool:
    """Whether a module is transformers' Conv1D, whose weight is (inputs, outputs)."""
    return isinstance(module, Conv1D)


KEPT = "full_weight"
"""Attribute of a 4-bit module that keeps its dequantized weight, see trainables.models.full_weights."""


def full_weight(module: torch.nn.Module) -> torch.Tensor | None:
    """A 4-bit linear module's dequantized weight, (outputs, inputs); None for any other module."""
    if KEPT in vars(module):
        return vars(module)[KEPT]
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    if state is None:
        return None
    if has_kernel(module):
        return nf4_kernels.dequantized(module.weight.data, state)
    return bitsandbytes.functional.dequantize_4bit(module.weight.data, state)


def has_kernel(module: torch.nn.Module) -> bool:
    """Whether a module's 4-bit weight is dequantized by a kernel of this project; False for any other module.

    peft's layers are other modules, though they show their base layer's weight as their own.
    """
    if not isinstance(module, bitsandbytes.nn.Linear4bit) or not can_run_on(module.weight):
        return False
    state = module.weight.quant_state
    return state is not None and nf4_kernels.serves(module.weight.data, state)


LEAST_TOKENS = 512
"""With fewer, bitsandbytes may multiply by a 4-bit weight without writing the full one."""


def frozen_linear(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The forward of a 4-bit module that `has_kernel`: FrozenLinear of LEAST_TOKENS or more, else bitsandbytes' own."""
    if x.shape[:-1].numel() < LEAST_TOKENS:
        return type(module).forward(module, x)
    return FrozenLinear.apply(x, module)


class FrozenLinear(torch.autograd.Function):
    """y = W x + bias of a frozen 4-bit module: its weight is dequantized in either pass and not kept between them."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:
        """x: (..., inputs). Returns (..., outputs) in x's dtype."""
        ctx.module = module
        bias = None if module.bias is None else module.bias.to(x.dtype)
        return F.linear(x, full_weight(module).to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _through_base(ctx.module, upstream.flatten(0, -2)).view(*upstream.shape[:-1], -1), None
