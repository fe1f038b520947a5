"""Mistral (Jiang et al. 2023, arXiv:2310.06825): as Llama; where config.json says so, attention sees a window only."""

from trainables.models.families.family import ModelFamily
from trainables.models.families.gated import gated_shape
from trainables.models.families.llama import GROUPS, PARENTS, TARGETS

FAMILY = ModelFamily(
    name="Mistral",
    model_types=frozenset({"mistral"}),
    targets=TARGETS,
    groups=GROUPS,
    blocks="layers",
    dropouts=("attention_dropout",),
    windows="every block",
    shape_of=gated_shape,
    parents=PARENTS,
)
