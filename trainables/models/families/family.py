"""ModelFamily, the value that describes an architecture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from trainables.cost.shape import Shape

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

GROUPS = ("qkv", "attention", "mlp", "all-linear")
"""Names that stand for target modules of any family: query, key and value; those and attention's output; the
feed-forward layer; all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """What must be known of an architecture beyond transformers' portable names.

    Attributes:
        name: for people.
        model_types: values of config.json's model_type.
        targets: every linear module of a block, by the end of its name, in the order of a forward pass.
        groups: from each name in GROUPS to its targets, in the same order.
        blocks: name of the list of blocks within `model.base_model`.
        dropouts: fields of the config that hold the base's own dropout probabilities, all set to 0.
        is_transposed: 16-bit weights of the blocks are (inputs, outputs), as in transformers' Conv1D.
        windows: which blocks attend to config.sliding_window tokens only: none, whatever the config says; every block;
            or those that config.layer_types lists so.
        activation: path of the activation in a block, and the config's name for it, where it is GELU's tanh
            approximation, which the lean loop runs as one kernel; None where the model's own activation stays.
        shape_of: from the values of a config.json to the sizes that memory is predicted from; None where the formulas
            do not fit them.
        hub_shapes: shapes that are known without asking the hub, by the last part of the hub id.
        root: name of `model.base_model` within the model.
        parents: module of the block that holds a target; the block itself where it is not named.
    """

    name: str
    model_types: frozenset[str]
    targets: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    blocks: str
    dropouts: tuple[str, ...] = ()
    is_transposed: bool = False
    windows: Literal["none", "every block", "listed"] = "none"
    activation: tuple[str, str] | None = None
    shape_of: Callable[[Mapping[str, Any]], Shape | None] = lambda values: None
    hub_shapes: Mapping[str, Shape] = field(default_factory=dict)
    root: str = "model"
    parents: Mapping[str, str] = field(default_factory=dict)

    def name_of(self, block: int, target: str | None = None) -> str:
        """Full name of a block, or of a target's module in it, as transformers has it.

        >>> ModelFamily(name="", model_types=frozenset(), targets=("q",), groups={}, blocks="layers",
        ...     parents={"q": "self_attn"}).name_of(3, "q")
        'model.layers.3.self_attn.q'
        """
        inside = () if target is None else (self.parents.get(target), target)
        return ".".join(filter(None, (self.root, self.blocks, str(block), *inside)))

    def blocks_of(self, base: "PreTrainedModel") -> "list[nn.Module]":
        """The blocks of a base model, from the first to the last."""
        return list(base.base_model.get_submodule(self.blocks))

    def modules_in(self, block: "nn.Module") -> "dict[str, nn.Module]":
        """The targets that a block has, in their order."""
        inside = dict(block.named_modules())
        modules = {}
        for target in self.targets:
            for name, module in inside.items():
                if ends_with(name, target):
                    modules[target] = module
        return modules


def ends_with(name: str, target: str) -> bool:
    """Whether a module of this name is one that a target names, as peft matches them: by whole parts of its end."""
    return f".{name}".endswith(f".{target}")
