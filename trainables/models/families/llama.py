"""Llama (Touvron et al. 2023, arXiv:2302.13971), and what is built like it: Llama 2 and 3, SmolLM, SmolLM2, TinyLlama.

Rotary positions, RMSNorm, grouped-query attention and a gated feed-forward layer. The names of its modules became
those of most later families.
"""

from trainables.models.families.family import ModelFamily
from trainables.models.families.gated import gated_shape

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GROUPS = {"qkv": TARGETS[:3], "attention": TARGETS[:4], "mlp": TARGETS[4:], "all-linear": TARGETS}
PARENTS = dict.fromkeys(GROUPS["attention"], "self_attn") | dict.fromkeys(GROUPS["mlp"], "mlp")

FAMILY = ModelFamily(
    name="Llama",
    model_types=frozenset({"llama"}),
    targets=TARGETS,
    groups=GROUPS,
    blocks="layers",
    dropouts=("attention_dropout",),
    shape_of=gated_shape,
    parents=PARENTS,
)
