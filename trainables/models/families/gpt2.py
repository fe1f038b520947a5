"""GPT-2 (Radford et al. 2019): learned positions, Conv1D modules that hold (inputs, outputs), gelu_new."""

from collections.abc import Mapping
from typing import Any

from trainables.cost.shape import Linear, Shape, head_dim_of
from trainables.models.families.family import ModelFamily

TARGETS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""A bare "c_proj" would match two of them."""
GROUPS = {"qkv": TARGETS[:1], "attention": TARGETS[:2], "mlp": TARGETS[2:], "all-linear": TARGETS}
ACTIVATION = "gelu_new"


def sized(n_layer: int, n_embd: int, n_head: int, vocab_size: int = 50257, n_positions: int = 1024) -> Shape:
    """The shape of a GPT-2 by the names of its config; the MLP is four times as wide as the model."""
    return Shape(
        n_layer=n_layer,
        hidden_size=n_embd,
        n_head=n_head,
        n_kv_head=n_head,
        head_dim=head_dim_of(n_embd, n_head),
        vocab_size=vocab_size,
        context_tokens=n_positions,
        linears=(
            Linear(name=TARGETS[0], role="qkv", inputs=n_embd, outputs=3 * n_embd, bias=True),
            Linear(name=TARGETS[1], role="attention output", inputs=n_embd, outputs=n_embd, bias=True),
            Linear(name=TARGETS[2], role="mlp input", inputs=n_embd, outputs=4 * n_embd, bias=True),
            Linear(name=TARGETS[3], role="mlp output", inputs=4 * n_embd, outputs=n_embd, bias=True),
        ),
        gated=False,
        tied_head=True,
        n_positions=n_positions,
        layer_norm=True,
    )


HUB_SHAPES = {
    "gpt2": sized(12, 768, 12),
    "gpt2-medium": sized(24, 1024, 16),
    "gpt2-large": sized(36, 1280, 20),
    "gpt2-xl": sized(48, 1600, 25),
}
"""OpenAI's own sizes."""


def shape_of(values: Mapping[str, Any]) -> Shape | None:
    """The shape in a config.json's values; None where its MLP has another width or activation than GPT-2's."""
    if values.get("n_inner") not in (None, 4 * values.get("n_embd", 0)):
        return None
    if values.get("activation_function", ACTIVATION) != ACTIVATION:
        return None
    return sized(**{name: values[name] for name in ("n_layer", "n_embd", "n_head", "vocab_size", "n_positions")})


FAMILY = ModelFamily(
    name="GPT-2",
    model_types=frozenset({"gpt2"}),
    targets=TARGETS,
    groups=GROUPS,
    blocks="h",
    dropouts=("attn_pdrop", "embd_pdrop", "resid_pdrop"),
    is_transposed=True,
    activation=("mlp.act", ACTIVATION),
    shape_of=shape_of,
    hub_shapes=HUB_SHAPES,
    root="transformer",
)
