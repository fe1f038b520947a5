"""What a gated block computes between its linear modules, each as one operation that keeps its inputs alone.

RMSNorm with a frozen weight, rotary positions on queries and keys, activation(gate) * up. Forward and backward pass are
one kernel each on a GPU (trainables.models.block_kernels), and the same formulas in plain PyTorch elsewhere. Sums are
in float32; what is kept for the backward pass are the inputs, in their own dtype.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.nn import functional as F

from trainables.models.kernels import can_run_on

try:
    from trainables.models import block_kernels
except ImportError:  # Triton comes with PyTorch for CUDA only
    block_kernels = None

Activation = Literal["silu", "gelu_tanh"]
GELU_FACTOR, GELU_CUBIC = 0.7978845608028654, 0.044715
"""sqrt(2 / pi), and the factor of x**3 in GELU's tanh approximation (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""


class RMSNorm(torch.autograd.Function):
    """y = (offset + weight) * x / rms(x) over the last dimension (Zhang & Sennrich 2019, arXiv:1910.07467).

    Without an offset the quotient is rounded to x's dtype before it is multiplied, as Llama's is; with one the product
    alone is rounded, as Gemma's is.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float, offset: float) -> torch.Tensor:
        """x: (..., width); weight: (width,), which gets no gradient."""
        ctx.save_for_backward(x, weight)
        ctx.epsilon, ctx.offset = epsilon, offset
        if block_kernels and can_run_on(x):
            return block_kernels.rms_norm(x, weight, epsilon, offset)
        quotient, _ = _over_rms(x, epsilon)
        if offset:
            return ((offset + weight.float()) * quotient).to(x.dtype)
        return weight * quotient.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        x, weight = ctx.saved_tensors
        if block_kernels and can_run_on(x):
            return block_kernels.rms_norm_gradient(upstream, x, weight, ctx.epsilon, ctx.offset), None, None, None
        quotient, inverse = _over_rms(x, ctx.epsilon)
        of_quotient = upstream.float() * (ctx.offset + weight.float())
        along = (of_quotient * quotient).mean(dim=-1, keepdim=True)
        return ((of_quotient - quotient * along) * inverse).to(x.dtype), None, None, None


def _over_rms(x: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x / rms(x) and 1 / rms(x), float32."""
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)
    return wide * inverse, inverse


class Rotary(torch.autograd.Function):
    """Queries and keys turned by their positions (Su et al. 2021, arXiv:2104.09864), halves of a head as pairs."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """q, k: (batch, heads, length, width of a head); cos, sin: (batch or 1, length, width of a head)."""
        ctx.save_for_backward(cos, sin)
        if block_kernels and can_run_on(q):
            return block_kernels.rotary(q, k, cos, sin, backward=False)
        cos, sin = cos[:, None], sin[:, None]
        return q * cos + _turned(q) * sin, k * cos + _turned(k) * sin

    @staticmethod
    def backward(ctx: Any, d_q: torch.Tensor, d_k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        if block_kernels and can_run_on(d_q):
            return *block_kernels.rotary(d_q, d_k, cos, sin, backward=True), None, None
        cos, sin = cos[:, None], sin[:, None]
        return d_q * cos - _turned(d_q * sin), d_k * cos - _turned(d_k * sin), None, None


def _turned(x: torch.Tensor) -> torch.Tensor:
    """(first, second) half -> (-second, first): a quarter turn of each pair, whose inverse is its negative."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class Gated(torch.autograd.Function):
    """activation(gate) * up (Shazeer 2020, arXiv:2002.05202)."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """gate, up: (..., width)."""
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        if block_kernels and can_run_on(gate):
            return block_kernels.gated(gate, up, activation)
        return ACTIVATIONS[activation][0](gate) * up

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        gate, up = ctx.saved_tensors
        if block_kernels and can_run_on(gate):
            return *block_kernels.gated_gradient(upstream, gate, up, ctx.activation), None
        activation, derivative = ACTIVATIONS[ctx.activation]
        wide = gate.float()
        d_gate = upstream.float() * up.float() * derivative(wide)
        return d_gate.to(gate.dtype), (upstream.float() * activation(wide)).to(up.dtype), None


def _silu_derivative(x: torch.Tensor) -> torch.Tensor:
    sigmoid = torch.sigmoid(x)
    return sigmoid * (1 + x * (1 - sigmoid))


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu_derivative(x: torch.Tensor) -> torch.Tensor:
    tanh = torch.tanh(GELU_FACTOR * (x + GELU_CUBIC * x**3))
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * GELU_FACTOR * (1 + 3 * GELU_CUBIC * x * x)


Elementwise = Callable[[torch.Tensor], torch.Tensor]
ACTIVATIONS: dict[Activation, tuple[Elementwise, Elementwise]] = {
    "silu": (F.silu, _silu_derivative),
    "gelu_tanh": (_gelu, _gelu_derivative),
}
"""Each with its derivative."""
