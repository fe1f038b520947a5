"""A ModelFamily for a decoder that no family here describes, read off the model itself.

Such a base runs through transformers' and peft's own forward alone: eagerly, with the standard loop, its memory and
time measured and not predicted.
"""

import re
from typing import TYPE_CHECKING

from trainables.models.families.family import ModelFamily
from trainables.values.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

ATTENTION = ("attn", "attention")
"""A module is taken for one of attention where its name holds one of these; any other for one of the feed-forward
layer."""
QKV = re.compile(r"qkv|(^|_)(q|k|v|query|key|value|attn)(_|$)", re.IGNORECASE)
"""What the last part of the name of a query, key or value module holds, and that of attention's output does not."""


def described(base: "PreTrainedModel") -> ModelFamily:
    """The family of one model: all linear modules of its blocks, by their names within a block.

    Args:
        base: weights are not looked at; those on PyTorch's meta device will do.
    Raises:
        ConfigError: it has no list of blocks, or none of them holds a linear module.
    """
    path, blocks = _blocks_of(base)
    linear: dict[str, bool] = {}
    for block in blocks:
        linear |= {name: is_conv1d(module) for name, module in block.named_modules() if is_linear(module)}
    model_type = base.config.model_type
    if not linear:
        raise ConfigError(f"BASE_MODEL: the blocks of {model_type!r} hold no linear module that could be adapted")
    targets = tuple(linear)
    attention = tuple(name for name in targets if any(word in name.lower() for word in ATTENTION))
    qkv = tuple(name for name in attention if QKV.search(name.rpartition(".")[2]))
    mlp = tuple(name for name in targets if name not in attention)
    return ModelFamily(
        name=model_type,
        model_types=frozenset({model_type}),
        targets=targets,
        groups={"qkv": qkv, "attention": attention, "mlp": mlp, "all-linear": targets},
        blocks=path,
        is_transposed=all(linear.values()),
        root=base.base_model_prefix,
    )


def _blocks_of(base: "PreTrainedModel") -> "tuple[str, list[nn.Module]]":
    """Name within `base.base_model`, and members, of the list that has as many modules as the config has layers."""
    from torch.nn import ModuleList

    for name, module in base.base_model.named_modules():
        if isinstance(module, ModuleList) and len(module) == base.config.num_hidden_layers:
            return name, list(module)
    raise ConfigError(f"BASE_MODEL: {base.config.model_type!r} has no list of {base.config.num_hidden_layers} blocks")


def is_conv1d(module: "nn.Module") -> bool:
    """Whether a module is transformers' Conv1D, whose weight is (inputs, outputs)."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def sizes_of(module: "nn.Module") -> tuple[int, int]:
    """Inputs and outputs of a linear module, 4-bit or not."""
    return tuple(module.weight.shape) if is_conv1d(module) else (module.in_features, module.out_features)


def is_linear(module: "nn.Module") -> bool:
    """Whether a module is one that LoRA and NF4 know: nn.Linear (bitsandbytes' are too) or Conv1D."""
    from torch.nn import Linear

    return isinstance(module, Linear) or is_conv1d(module)
