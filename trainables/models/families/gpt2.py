"""GPT-2 (Radford et al. 2019): learned positions, Conv1D modules that hold (inputs, outputs), gelu_new."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from trainables.cost.predicted_memory import Shape
from trainables.models.families.family import ModelFamily

TARGETS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""A bare "c_proj" would match two of them."""
GROUPS = {"qkv": TARGETS[:1], "attention": TARGETS[:2], "mlp": TARGETS[2:], "all-linear": TARGETS}
HUB_SHAPES = {
    "gpt2": Shape(n_layer=12, n_embd=768, n_head=12),
    "gpt2-medium": Shape(n_layer=24, n_embd=1024, n_head=16),
    "gpt2-large": Shape(n_layer=36, n_embd=1280, n_head=20),
    "gpt2-xl": Shape(n_layer=48, n_embd=1600, n_head=25),
}
"""OpenAI's own sizes."""


def shape_of(values: Mapping[str, Any]) -> Shape | None:
    """The shape in a config.json's values; None where its MLP is not four times as wide as the model."""
    if values.get("n_inner") not in (None, 4 * values.get("n_embd", 0)):
        return None
    return Shape(**{field.name: values[field.name] for field in fields(Shape)})


FAMILY = ModelFamily(
    name="GPT-2",
    model_types=frozenset({"gpt2"}),
    targets=TARGETS,
    groups=GROUPS,
    blocks="h",
    dropouts=("attn_pdrop", "embd_pdrop", "resid_pdrop"),
    is_transposed=True,
    activation=("mlp.act", "gelu_new"),
    shape_of=shape_of,
    hub_shapes=HUB_SHAPES,
)
