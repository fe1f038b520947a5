"""Qwen3, the dense ones (arXiv:2505.09388): as Llama; queries and keys are normalised by head."""

from trainables.models.families.family import ModelFamily
from trainables.models.families.gated import gated_shape
from trainables.models.families.llama import GROUPS, PARENTS, TARGETS

FAMILY = ModelFamily(
    name="Qwen3",
    model_types=frozenset({"qwen3"}),
    targets=TARGETS,
    groups=GROUPS,
    blocks="layers",
    dropouts=("attention_dropout",),
    windows="listed",
    shape_of=gated_shape,
    parents=PARENTS,
)
