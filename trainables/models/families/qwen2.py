"""Qwen2 and Qwen2.5 (arXiv:2407.10671, arXiv:2412.15115): as Llama, with biases on query, key and value."""

from trainables.models.families.family import ModelFamily
from trainables.models.families.gated import gated_shape
from trainables.models.families.llama import GROUPS, PARENTS, TARGETS

FAMILY = ModelFamily(
    name="Qwen2",
    model_types=frozenset({"qwen2"}),
    targets=TARGETS,
    groups=GROUPS,
    blocks="layers",
    dropouts=("attention_dropout",),
    windows="listed",
    shape_of=gated_shape,
    parents=PARENTS,
)
