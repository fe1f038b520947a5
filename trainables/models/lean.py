"""The lean loop: the mathematics of transformers' and peft's own modules, in fewer kernels and bytes.

The loss is that of trainables.models.chunked_loss. GELU is one kernel that keeps its input. An adapter keeps its input
in the compute dtype, not in float32.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import bitsandbytes
import torch
from peft.tuners.lora.layer import LoraLayer
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from trainables.models.base_model import core_of
from trainables.models.chunked_loss import ChunkedLoss
from trainables.models.families import family_of
from trainables.models.head import has_plain_head, logits_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def lean_loss(
    model: "PeftModel", input_ids: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Mean cross-entropy in nats over the targets that are not IGNORE; nothing waits for the device.

    Args:
        input_ids: (batch, length).
        positions, targets: as from `supervised`; like input_ids on the model's device.
    """
    core = core_of(model)
    with lean_modules(model):
        hidden = core.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    states = hidden.flatten(0, 1).index_select(0, positions)  # (n, width)
    if not has_plain_head(core):
        return F.cross_entropy(logits_of(core, states).float(), targets)
    return ChunkedLoss.apply(states, core.get_output_embeddings().weight, targets)


@contextmanager
def lean_modules(model: "PreTrainedModel | PeftModel") -> Iterator[None]:
    """Inside, a model runs the lean forward: GELU as one kernel, each plain LoRA module as one LoraLinear.

    Anything else (another activation, DoRA, a bias on the adapter, ...) keeps transformers' and peft's own forward.
    """
    stock = _activations(core_of(model))
    adapted = [layer for layer in adapted_layers(model) if not layer.disable_adapters and is_plain_lora(layer)]
    try:
        for owner, name in stock:
            setattr(owner, name, torch.nn.GELU(approximate="tanh"))
        for layer in adapted:
            layer.forward = partial(adapted_forward, layer)
        yield
    finally:
        for (owner, name), activation in stock.items():
            setattr(owner, name, activation)
        for layer in adapted:
            layer.__dict__.pop("forward", None)


def _activations(core: "PreTrainedModel") -> dict[tuple[torch.nn.Module, str], torch.nn.Module]:
    """The activations of a base that torch.nn.GELU(approximate="tanh") can replace, by owner and attribute name."""
    family = family_of(core.config.model_type)
    if family is None or family.activation is None:
        return {}
    place, name = family.activation
    if getattr(core.config, "activation_function", None) != name:
        return {}
    path, _, leaf = place.rpartition(".")
    owners = [block.get_submodule(path) for block in family.blocks_of(core)]
    return {(owner, leaf): getattr(owner, leaf) for owner in owners}


def is_plain_lora(layer: LoraLayer) -> bool:
    """Whether peft's layer computes base(x) + scaling * B A dropout(x) and nothing else."""
    if len(layer.active_adapters) != 1 or layer.merged:
        return False
    (name,) = layer.active_adapters
    if name not in layer.lora_A or name in layer.lora_variant or layer.lora_bias.get(name, False):
        return False
    dropout = layer.lora_dropout[name]
    return isinstance(dropout, torch.nn.Identity | torch.nn.Dropout) and _is_known_linear(layer.get_base_layer())


def _is_known_linear(module: torch.nn.Module) -> bool:
    """Whether the lean backward pass knows the layout of a frozen module's weight."""
    return is_conv1d(module) or isinstance(module, torch.nn.Linear)  # bitsandbytes' Linear4bit is an nn.Linear


def adapted_layers(model: "PreTrainedModel | PeftModel") -> list[LoraLayer]:
    """The modules of a model that have a LoRA adapter."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def adapted_forward(layer: LoraLayer, x: torch.Tensor) -> torch.Tensor:
    """The lean forward of peft's layer of a plain LoRA adapter: base(x) + scaling * B A dropout(x)."""
    (name,) = layer.active_adapters
    if not (layer.training or torch.is_grad_enabled()):
        weights = layer.lora_A[name].weight, layer.lora_B[name].weight
        return read_through(x, *weights, layer.get_base_layer(), layer.scaling[name])
    dropout = getattr(layer.lora_dropout[name], "p", 0.0) if layer.training else 0.0
    return LoraLinear.apply(
        x, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.get_base_layer(), layer.scaling[name], dropout
    )


def read_through(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, base: torch.nn.Module, scaling: float | torch.Tensor
) -> torch.Tensor:
    """LoraLinear's forward for inference: the adapter is rounded to x's dtype, as W and x are already.

    Two products, with sums in float32, and no copies of x or y in float32.

    Args:
        x: (..., inputs).
        a, b: (rank, inputs) and (outputs, rank), float32.
        base: the frozen linear module.
        scaling: factor on B A.
    Returns:
        (..., outputs), in x's dtype.
    """
    if torch.is_tensor(scaling) or scaling != 1:
        b = b * scaling
    y = base(x)
    low = x.flatten(0, -2).mm(a.to(x.dtype).T)  # (tokens, rank)
    y.flatten(0, -2).addmm_(low, b.to(x.dtype).T)
    return y


class LoraLinear(torch.autograd.Function):
    """A frozen linear module with a LoRA adapter (Hu et al. 2021, arXiv:2106.09685, section 4.1).

    y = W x + scaling * B A dropout(x); the adapter's products are in float32 whatever W is in, see `adapter_products`.
    Saved for the backward pass: x in its own dtype, the dropout's mask, and scaling * A dropout(x).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        base: torch.nn.Module,
        scaling: float | torch.Tensor,
        dropout: float,
    ) -> torch.Tensor:
        """x: (..., inputs); a: (rank, inputs); b: (outputs, rank). Returns (..., outputs) in x's dtype."""
        flat = x.flatten(0, -2)
        dropped, mask = flat.float(), None
        if dropout:
            dropped, mask = torch.native_dropout(dropped, dropout, True)
        y = base(x)
        with adapter_products(x):
            low = dropped.mm(a.T) * scaling  # (tokens, rank)
            y.flatten(0, -2).add_(low.mm(b.T))
        ctx.save_for_backward(flat, mask, low, a, b)
        ctx.base, ctx.scaling, ctx.dropout_scale = base, scaling, 1 / (1 - dropout)
        return y

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, mask, low, a, b = ctx.saved_tensors
        dy = upstream.flatten(0, -2)
        with adapter_products(upstream):
            dy32 = dy.float()
            # (tokens, rank); alpha is dropout's factor, and beta=0 leaves out `low`
            d_low = torch.addmm(low, dy32, b, beta=0, alpha=ctx.dropout_scale).mul_(ctx.scaling)
            d_b = dy32.T.mm(low)
            del dy32
            inputs32 = torch.empty_like(flat, dtype=torch.float32)  # those that dropout let through
            d_a = d_low.T.mm(inputs32.copy_(flat) if mask is None else torch.mul(flat, mask, out=inputs32))
            del inputs32
        if not ctx.needs_input_grad[0]:
            return None, d_a, d_b, None, None, None
        d_x = _input_gradient(ctx.base, dy)
        with adapter_products(upstream):
            adapter_d_x = d_low.mm(a)
        d_x = d_x.add_(adapter_d_x) if mask is None else d_x.addcmul_(adapter_d_x, mask)
        return d_x.view(*upstream.shape[:-1], -1), d_a, d_b, None, None, None


@contextmanager
def adapter_products(x: torch.Tensor) -> Iterator[None]:
    """Inside, float32 products on a GPU may use its tensor cores (TF32) where x is bfloat16.

    TF32 has float32's range and 11 bits of mantissa to bfloat16's 8: it rounds an eighth as coarsely as x was rounded
    already, and sums are in float32. Where x is float32 or float16 nothing changes.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if x.is_cuda and x.dtype == torch.bfloat16:
        matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _input_gradient(base: torch.nn.Module, dy: torch.Tensor) -> torch.Tensor:
    """dy (tokens, outputs) through a frozen Conv1D (inputs, outputs), nn.Linear (outputs, inputs) or 4-bit module."""
    weight = full_weight(base)
    if weight is not None:
        return dy.mm(weight.to(dy.dtype))
    return dy.mm(base.weight.T if is_conv1d(base) else base.weight)


def is_conv1d(module: torch.nn.Module) -> bool:
    """Whether a module is transformers' Conv1D, whose weight is (inputs, outputs)."""
    return isinstance(module, Conv1D)


def full_weight(module: torch.nn.Module) -> torch.Tensor | None:
    """A 4-bit linear module's dequantized weight, (outputs, inputs); None for any other module."""
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    if state is None:
        return None
    return bitsandbytes.functional.dequantize_4bit(module.weight.data, state)


def full_weights(base: "PreTrainedModel") -> dict[torch.nn.Module, torch.Tensor]:
    """The dequantized weight of every 4-bit module; they take as much memory as at 16 bits."""
    weights: dict[torch.nn.Module, torch.Tensor] = {}
    for module in base.modules():
        weight = full_weight(module)
        if weight is not None:
            weights[module] = weight
    return weights


@contextmanager
def multiplied_by(weights: Mapping[torch.nn.Module, torch.Tensor]) -> Iterator[None]:
    """Inside, 4-bit modules multiply by weights from `full_weights` instead of dequantizing for each product."""
    try:
        for module, weight in weights.items():
            module.forward = partial(F.linear, weight=weight, bias=module.bias)
        yield
    finally:
        for module in weights:
            module.__dict__.pop("forward", None)
