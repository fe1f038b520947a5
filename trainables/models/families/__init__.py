"""Model families: what is known of an architecture beyond the names that transformers gives every model.

Most code needs no family: `config.hidden_size`, `config.max_position_embeddings`, `model.base_model` and
`model.get_output_embeddings()` are there for every causal language model. What remains is one frozen ModelFamily, in
a file of its own. To add one: the file, its entry in FAMILIES, and its targets in a space.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from trainables.cost.predicted_memory import Shape
from trainables.models.families import gpt2
from trainables.models.families.family import ModelFamily
from trainables.values.errors import ConfigError, did_you_mean

FAMILIES: tuple[ModelFamily, ...] = (gpt2.FAMILY,)
MODEL_TYPES = frozenset(name for family in FAMILIES for name in family.model_types)
"""Architectures that can be adapted, quantized and measured, as `model_type` in config.json names them."""


def family_of(model_type: str) -> ModelFamily | None:
    """The family of a config.json's model_type; None of an architecture that is not known here."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def ordered_targets(targets: Iterable[str]) -> tuple[str, ...]:
    """Target modules in the order of the family that has them all, so that equal sets are equal tuples.

    Raises:
        ConfigError: no family has one of them (the nearest is named), or no single family has them all.
    """
    every = [name for family in FAMILIES for name in family.targets]
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
    """What the bytes of the model in a folder depend on, from its config.json; None where that is not known."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = family_of(values.get("model_type", ""))
        return family.shape_of(values) if family else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def shape_named(base_model: str) -> Shape | None:
    """The shape of a base, as far as its name or folder tells without asking the hub."""
    name = base_model.removeprefix("random:")
    own = name.rsplit("/", 1)[-1]
    known = (family.hub_shapes[own] for family in FAMILIES if own in family.hub_shapes)
    return next(known, None) or shape_in(Path(name).expanduser())
