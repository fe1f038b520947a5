"""SmolLM3 (Hugging Face, 2025): as Llama, but every fourth block knows no positions."""

from trainables.models.families.family import ModelFamily
from trainables.models.families.gated import gated_shape
from trainables.models.families.llama import GROUPS, PARENTS, TARGETS

FAMILY = ModelFamily(
    name="SmolLM3",
    model_types=frozenset({"smollm3"}),
    targets=TARGETS,
    groups=GROUPS,
    blocks="layers",
    dropouts=("attention_dropout",),
    windows="listed",
    shape_of=gated_shape,
    parents=PARENTS,
)
