"""Lets the blocks of a model run trainables.models.block_ops in place of transformers' own norms, rotary and gates."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainables.models.block_ops import Activation, Gated, RMSNorm, Rotary
from trainables.models.families.fusible import FUSIBLE, Fusible

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ACTIVATION_NAMES: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
"""From a config's name of an activation."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Sums are in float32: nothing wider is served."""


@contextmanager
def fused_blocks(core: "PreTrainedModel") -> Iterator[None]:
    """Inside, what the family of a model can fuse is fused; a model of another family runs as it is.

    The rotary function is exchanged in transformers' module, for all models of the family in this process.
    """
    fusible = FUSIBLE.get(core.config.model_type)
    if fusible is None or core.dtype not in DTYPES:
        yield
        return
    modeling: Any = import_module(fusible.modeling)
    rotary = modeling.apply_rotary_pos_emb
    changed = []
    try:
        for module in core.modules():
            forward = _forward_of(module, fusible)
            if forward is not None and "forward" not in vars(module):
                module.forward = forward
                changed.append(module)
        modeling.apply_rotary_pos_emb = _rotary
        yield
    finally:
        modeling.apply_rotary_pos_emb = rotary
        for module in changed:
            del module.forward


def _forward_of(module: nn.Module, fusible: Fusible) -> partial | None:
    """The fused forward of a module; None where its own stays."""
    name = type(module).__name__
    if name == fusible.norm and not module.weight.requires_grad:
        return partial(_norm, module.weight, getattr(module, fusible.epsilon), fusible.norm_offset)
    if name == fusible.mlp:
        activation = ACTIVATION_NAMES.get(getattr(module.config, fusible.activation))
        return partial(_mlp, module, activation) if activation else None
    return None


def _norm(weight: torch.Tensor, epsilon: float, offset: float, x: torch.Tensor) -> torch.Tensor:
    return RMSNorm.apply(x, weight, epsilon, offset)


def _mlp(module: nn.Module, activation: Activation, x: torch.Tensor) -> torch.Tensor:
    return module.down_proj(Gated.apply(module.gate_proj(x), module.up_proj(x), activation))


def _rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """In place of transformers' apply_rotary_pos_emb."""
    return Rotary.apply(q, k, cos, sin)
