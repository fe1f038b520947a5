"""ModelFamily, the value that describes an architecture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainables.cost.shape import Shape

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """What must be known of an architecture beyond transformers' portable names.

    Attributes:
        name: for people.
        model_types: values of config.json's model_type.
        targets: every linear module of a block, by the end of its name, in the order of a forward pass.
        blocks: name of the list of blocks within `model.base_model`.
        dropouts: fields of the config that hold the base's own dropout probabilities, all set to 0.
        is_transposed: 16-bit weights of the blocks are (inputs, outputs), as in transformers' Conv1D.
        activation: path of the activation in a block, and the config's name for it, where it is GELU's tanh
            approximation, which the lean loop runs as one kernel; None where the model's own activation stays.
        shape_of: from the values of a config.json to the sizes that memory is predicted from; None where the formulas
            do not fit them.
        hub_shapes: shapes that are known without asking the hub, by the last part of the hub id.
    """

    name: str
    model_types: frozenset[str]
    targets: tuple[str, ...]
    blocks: str
    dropouts: tuple[str, ...] = ()
    is_transposed: bool = False
    activation: tuple[str, str] | None = None
    shape_of: Callable[[Mapping[str, Any]], Shape | None] = lambda values: None
    hub_shapes: Mapping[str, Shape] = field(default_factory=dict)

    def blocks_of(self, base: "PreTrainedModel") -> "list[nn.Module]":
        """The blocks of a base model, from the first to the last."""
        return list(base.base_model.get_submodule(self.blocks))
