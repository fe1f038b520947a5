"""The lean loop: the mathematics of transformers' and peft's own modules, in fewer kernels and bytes.

The loss is that of trainables.models.chunked_loss. GELU is one kernel that keeps its input. An adapter keeps its input
in the compute dtype, not in float32, and no dropout mask.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from peft.tuners.lora.layer import LoraLayer
from torch.nn import functional as F

from trainables.models.chunked_loss import ChunkedLoss
from trainables.models.core import core_of
from trainables.models.dropout_mask import DropoutMasks, MaskedDropout
from trainables.models.families import family_of
from trainables.models.fused_blocks import fused_blocks
from trainables.models.head import has_plain_head, logits_of
from trainables.models.lora_linear import (
    LoraLinear,
    Matrices,
    frozen_linear,
    has_kernel,
    is_conv1d,
    read_through,
    rounded_matrices,
)
from trainables.models.padding_free import FlatRows, hidden_states, needs_no_mask, padding_free

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def lean_loss(
    model: "PeftModel",
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    targets: torch.Tensor,
    flat: FlatRows | None = None,
) -> torch.Tensor:
    """Mean cross-entropy in nats over the targets that are not IGNORE; nothing waits for the device.

    Args:
        input_ids: (batch, length), or (tokens,) as `flat` says.
        positions, targets: as from `supervised`; like input_ids on the model's device.
        flat: of rows that lie one after the other, see trainables.models.padding_free.
    """
    core = core_of(model)
    with lean_modules(model):
        states = hidden_states(core, input_ids, flat).index_select(0, positions)  # (n, width)
    if not has_plain_head(core):
        return F.cross_entropy(logits_of(core, states).float(), targets)
    return ChunkedLoss.apply(states, core.get_output_embeddings().weight, targets)


@contextmanager
def lean_step(model: "PeftModel", masks: DropoutMasks, batch: tuple[int, int], flat: FlatRows | None) -> Iterator[None]:
    """Inside, forward and backward pass of a step are the lean loop's, with the step's dropout.

    Args:
        batch: rows and length of a padded batch; of no use where there is `flat`.
    """
    core = core_of(model)
    reading = padding_free(core) if flat is not None or needs_no_mask(core) else nullcontext()
    drawing = masks.step(*batch) if flat is None else masks.step_at(flat.rows, flat.positions)
    with lean_modules(model), reading, drawing:  # also where the backward pass runs a block again
        yield


@contextmanager
def lean_modules(model: "PreTrainedModel | PeftModel") -> Iterator[None]:
    """Inside, a model runs the lean forward: blocks fused, GELU as one kernel, plain LoRA modules as LoraLinear, and
    4-bit modules as frozen_linear where their weight is dequantized by one kernel.

    Anything else (another activation, DoRA, a bias on the adapter, ...) keeps transformers' and peft's own forward.
    Contexts may be nested: the outermost one decides, as where a block of gradient checkpointing runs its forward pass
    again during the backward pass.
    """
    stock, modules = _activations(core_of(model)), list(model.modules())
    adapted = [m for m in modules if isinstance(m, LoraLayer) and _takes_lean_forward(m)]
    quantized = [m for m in modules if has_kernel(m) and "forward" not in vars(m)]
    try:
        for module in quantized:
            module.forward = partial(frozen_linear, module)
        for owner, name in stock:
            setattr(owner, name, torch.nn.GELU(approximate="tanh"))
        for layer, matrices in zip(adapted, _matrices(adapted, model), strict=True):
            layer.forward = partial(adapted_forward, layer, matrices=matrices)
        with fused_blocks(core_of(model)):
            yield
    finally:
        for (owner, name), activation in stock.items():
            setattr(owner, name, activation)
        for module in (*adapted, *quantized):
            module.__dict__.pop("forward", None)


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


def _matrices(layers: Sequence[LoraLayer], model: "PreTrainedModel | PeftModel") -> list[Matrices]:
    return _rounded(layers, core_of(model).dtype) if layers else []


def _rounded(layers: Sequence[LoraLayer], dtype: torch.dtype) -> list[Matrices]:
    """The adapter of each layer in the dtype of its products."""
    (name,) = layers[0].active_adapters
    of_a = [layer.lora_A[name].weight for layer in layers]
    of_b = [layer.lora_B[name].weight for layer in layers]
    return rounded_matrices(of_a, of_b, layers[0].scaling[name], dtype)  # a model's adapter has one scaling


def adapted_forward(layer: LoraLayer, x: torch.Tensor, matrices: Matrices | None = None) -> torch.Tensor:
    """The lean forward of peft's layer of a plain LoRA adapter: base(x) + scaling * B A dropout(x).

    Args:
        matrices: the layer's own, if they are rounded already.
    """
    if matrices is None or matrices[0].dtype != x.dtype:
        (matrices,) = _rounded([layer], x.dtype)
    base = layer.get_base_layer()
    if not (layer.training or torch.is_grad_enabled()):
        return read_through(x, matrices, base)
    (name,) = layer.active_adapters
    dropout = layer.lora_dropout[name]
    mask = dropout.mask() if isinstance(dropout, MaskedDropout) else None
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return LoraLinear.apply(x, a, b, matrices, base, layer.scaling[name], mask)
