"""Gemma 3, text alone (arXiv:2503.19786): four norms a block, gated GELU, sliding windows in five blocks of six."""

from trainables.models.families.family import ModelFamily
from trainables.models.families.gated import gated_shape
from trainables.models.families.llama import GROUPS, PARENTS, TARGETS

FAMILY = ModelFamily(
    name="Gemma 3",
    model_types=frozenset({"gemma3_text"}),
    targets=TARGETS,
    groups=GROUPS,
    blocks="layers",
    dropouts=("attention_dropout",),
    windows="listed",
    shape_of=gated_shape,
    parents=PARENTS,
)
