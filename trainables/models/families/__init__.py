"""Model families: what an architecture has beyond the names that transformers gives every model.

Most code needs no family: every causal language model has `config.hidden_size`, `model.base_model` and
`model.get_output_embeddings()`. The rest is one frozen ModelFamily, in a file of its own. To add one: the file, its
entry in FAMILIES, and its variants in tests/support/families.py; the tests then hold it to transformers' and peft's own
forward. Importable without PyTorch.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.cost.shape import Shape
from trainables.models.families import gemma3, generic, gpt2, llama, mistral, qwen2, qwen3, smollm3, targets
from trainables.models.families.family import GROUPS, ModelFamily

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["FAMILIES", "GROUPS", "MODEL_TYPES", "ModelFamily"]

FAMILIES: tuple[ModelFamily, ...] = (
    gpt2.FAMILY,
    llama.FAMILY,
    mistral.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    smollm3.FAMILY,
    gemma3.FAMILY,
)
MODEL_TYPES = frozenset(name for family in FAMILIES for name in family.model_types)
"""Architectures described here, as `model_type` in config.json names them; any other runs as generic.py says."""


def family_of(model_type: str) -> ModelFamily | None:
    """The family of a config.json's model_type; None if no family has it."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    return None


def family_of_model(base: "PreTrainedModel") -> ModelFamily:
    """The family of a model, read off the model itself where none is described here."""
    return family_of(base.config.model_type) or generic.described(base)


def ordered_targets(names: Iterable[str]) -> tuple[str, ...]:
    """Target modules in the order of the family that has them all, else by name: equal sets are equal tuples."""
    return targets.ordered_targets(names, FAMILIES)


def resolve_targets(names: Iterable[str], family: ModelFamily) -> tuple[str, ...]:
    """The modules that groups and names stand for in a family, see trainables.models.families.targets."""
    return targets.resolve_targets(names, family, FAMILIES)


def all_targets(names: tuple[str, ...]) -> bool:
    """Whether these are all linear modules of some family's blocks."""
    return any(names == family.targets for family in FAMILIES)


def shape_in(folder: Path) -> Shape | None:
    """The Shape of the model in a folder, from its config.json; None if it cannot be read or no family has it."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = family_of(values.get("model_type", ""))
        return family.shape_of(values) if family else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def shape_named(base_model: str) -> Shape | None:
    """The Shape of a base by its well-known name or from its local folder, without asking the hub; else None."""
    name = base_model.removeprefix("random:")
    last_part = name.rsplit("/", 1)[-1]
    for family in FAMILIES:
        if last_part in family.hub_shapes:
            return family.hub_shapes[last_part]
    return shape_in(Path(os.path.expanduser(name)))
