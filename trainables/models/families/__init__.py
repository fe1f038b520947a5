"""Model families: what an architecture has beyond the names that transformers gives every model.

Most code needs no family: every causal language model has `config.hidden_size`, `config.max_position_embeddings`,
`model.base_model` and `model.get_output_embeddings()`. The rest is one frozen ModelFamily, in a file of its own. To add
one: the file, its entry in FAMILIES, and its targets in a search space; tests/unit/trainables/models/test_families.py
then holds it to transformers' and peft's own forward. Importable without PyTorch.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from trainables.cost.shape import Shape
from trainables.models.families import gpt2
from trainables.models.families.family import ModelFamily
from trainables.values.errors import ConfigError, did_you_mean

FAMILIES: tuple[ModelFamily, ...] = (gpt2.FAMILY,)
MODEL_TYPES = frozenset(name for family in FAMILIES for name in family.model_types)
"""Architectures that can be adapted, quantized and measured, as `model_type` in config.json names them."""


def family_of(model_type: str) -> ModelFamily | None:
    """The family of a config.json's model_type; None if no family has it."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    return None


def ordered_targets(targets: Iterable[str]) -> tuple[str, ...]:
    """Target modules in the order of the family that has them all, so that equal sets are equal tuples.

    Raises:
        ConfigError: no family has one of them (the nearest is named), or no single family has them all.
    """
    every: list[str] = []
    for family in FAMILIES:
        every += family.targets
    wanted = list(targets)
    for name in wanted:
        if name not in every:
            raise ConfigError(f"targets: no module {name!r}{did_you_mean(str(name), every)}")
    for family in FAMILIES:
        if set(wanted) <= set(family.targets):
            return tuple(name for name in family.targets if name in wanted)
    raise ConfigError(f"targets: no family of models has all of {', '.join(wanted)}")


def all_targets(targets: tuple[str, ...]) -> bool:
    """Whether these are all linear modules of some family's blocks."""
    return any(targets == family.targets for family in FAMILIES)


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
    return shape_in(Path(name).expanduser())
