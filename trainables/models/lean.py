"""The lean loop: the mathematics of transformers' and peft's own modules, in fewer kernels and bytes.

The loss is that of trainables.models.chunked_loss. GELU is one kernel that keeps its input. An adapter keeps its input
in the compute dtype, not in float32, and no dropout mask.
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
from trainables.models.dropout_mask import Mask, MaskedDropout, add_product_, dropped
from trainables.models.families import family_of
from trainables.models.fused_blocks import fused_blocks

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
    return ChunkedLoss.apply(states, core.get_output_embeddings().weight, targets)


@contextmanager
def lean_modules(model: "PreTrainedModel | PeftModel") -> Iterator[None]:
    """Inside, a model runs the lean forward: blocks fused, GELU as one kernel, plain LoRA modules as LoraLinear.

    Anything else (another activation, DoRA, a bias on the adapter, ...) keeps transformers' and peft's own forward.
    Contexts may be nested: the outermost one decides, as where a block of gradient checkpointing runs its forward pass
    again during the backward pass.
    """
    stock = _activations(core_of(model))
    adapted = [layer for layer in adapted_layers(model) if _takes_lean_forward(layer)]
    try:
        for owner, name in stock:
            setattr(owner, name, torch.nn.GELU(approximate="tanh"))
        for layer in adapted:
            layer.forward = partial(adapted_forward, layer)
        with fused_blocks(core_of(model)):
            yield
    finally:
        for (owner, name), activation in stock.items():
            setattr(owner, name, activation)
        for layer in adapted:
            layer.__dict__.pop("forward", None)


def _takes_lean_forward(layer: LoraLayer) -> bool:
    return "forward" not in vars(layer) and not layer.disable_adapters and is_plain_lora(layer)


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
    if isinstance(dropout, torch.nn.Dropout):  # its mask cannot be drawn again
        return not dropout.training and _is_known_linear(layer.get_base_layer())
    return isinstance(dropout, torch.nn.Identity | MaskedDropout) and _is_known_linear(layer.get_base_layer())


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
    dropout = layer.lora_dropout[name]
    mask = dropout.mask() if isinstance(dropout, MaskedDropout) else None
    return LoraLinear.apply(
        x, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.get_base_layer(), layer.scaling[name], mask
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
        base: torch.nn.Module,
        scaling: float | torch.Tensor,
        mask: Mask | None,
    ) -> torch.Tensor:
        """x: (..., inputs); a: (rank, inputs); b: (outputs, rank). Returns (..., outputs) in x's dtype."""
        flat = x.flatten(0, -2)
        scaled_a = torch.mul(a, scaling, out=torch.empty_like(a, dtype=x.dtype))
        rounded_b = b.to(x.dtype)
        low = dropped(flat, mask).mm(scaled_a.T)  # (tokens, rank)
        y = base(x)
        y.flatten(0, -2).addmm_(low, rounded_b.T)
        ctx.save_for_backward(flat, low, scaled_a, rounded_b)
        ctx.base, ctx.scaling, ctx.mask, ctx.master_dtype = base, scaling, mask, a.dtype
        return y

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, low, scaled_a, b = ctx.saved_tensors
        dy = upstream.flatten(0, -2)
        d_low = dy.mm(b)  # (tokens, rank)
        d_b = _product(dy.T, low, ctx.master_dtype)
        d_a = _product(d_low.T, dropped(flat, ctx.mask), ctx.master_dtype).mul_(ctx.scaling)
        if not ctx.needs_input_grad[0]:
            return None, d_a, d_b, None, None, None
        d_x = add_product_(_input_gradient(ctx.base, dy), d_low, scaled_a, ctx.mask)
        return d_x.view(*upstream.shape[:-1], -1), d_a, d_b, None, None, None


def _product(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """left right, summed and kept in a `dtype` at least as wide as theirs."""
    if left.is_cuda and left.dtype != dtype:
        return torch.mm(left, right, out_dtype=dtype)
    return left.to(dtype).mm(right.to(dtype))


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
