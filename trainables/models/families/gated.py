"""Shapes of the families with a gated MLP, rotary positions and RMSNorm, from a config.json as it is published.

What a config.json leaves out is what transformers' own config class of that family has by default.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainables.cost.shape import Linear, Shape, head_dim_of

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""In the order of a forward pass."""
ACTIVATIONS = frozenset({"silu", "gelu_pytorch_tanh"})
"""Those whose product with up(x) the lean loop runs as one operation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What a family has beside or in place of Llama's.

    Attributes:
        qkv_bias: queries, keys and values always have a bias, and nothing else has; None where the config says it.
        tied_head: where the config does not say it.
        n_block_norms, head_norms: see Shape.
        n_kv_head, head_dim: see Shape, where the config does not say them; 0: as many as queries, width by heads.
        has_window: whether attention has a window; None where the config's use_sliding_window says it.
        window: its tokens where the config does not say them.
        window_pattern: the n-th, 2n-th, ... block has no window, where the config does not list them; 1: all have it.
        rope_interval: the n-th, 2n-th, ... block does not rotate queries and keys, likewise; 0: all rotate them.
    """

    qkv_bias: bool | None = None
    tied_head: bool = False
    n_block_norms: int = 2
    head_norms: bool = False
    n_kv_head: int = 0
    head_dim: int = 0
    has_window: bool | None = False
    window: int = 4096
    window_pattern: int = 1
    rope_interval: int = 0


VARIANTS: Mapping[str, Variant] = {
    "llama": Variant(),
    "mistral": Variant(qkv_bias=False, n_kv_head=8, has_window=True),
    "qwen2": Variant(qkv_bias=True, n_kv_head=32, has_window=None),
    "qwen3": Variant(n_kv_head=32, head_dim=128, head_norms=True, has_window=None),
    "smollm3": Variant(tied_head=True, n_kv_head=4, rope_interval=4, has_window=None, window=0),
    "gemma3_text": Variant(
        tied_head=True, n_kv_head=4, head_dim=256, n_block_norms=4, head_norms=True, has_window=True, window_pattern=6
    ),
}
"""By model_type."""


def gated_shape(values: Mapping[str, Any]) -> Shape | None:
    """The shape in a config.json's values; None where its activation is one that is not known here.

    Raises:
        KeyError: a size is missing, or `model_type` is none of VARIANTS.
        TypeError: a size is no number.
    """
    variant = VARIANTS[values["model_type"]]
    if values.get("hidden_activation", values.get("hidden_act")) not in ACTIVATIONS:
        return None
    width, n_head, n_layer = values["hidden_size"], values["num_attention_heads"], values["num_hidden_layers"]
    n_kv_head = values.get("num_key_value_heads", variant.n_kv_head) or n_head
    head_dim = values.get("head_dim", variant.head_dim) or head_dim_of(width, n_head)
    return Shape(
        n_layer=n_layer,
        hidden_size=width,
        n_head=n_head,
        n_kv_head=n_kv_head,
        head_dim=head_dim,
        vocab_size=values["vocab_size"],
        context_tokens=values["max_position_embeddings"],
        linears=_linears(values, n_head * head_dim, n_kv_head * head_dim, variant.qkv_bias),
        tied_head=values.get("tie_word_embeddings", variant.tied_head),
        n_block_norms=variant.n_block_norms,
        head_norms=variant.head_norms,
        n_rotary=_n_rotary(values, variant.rope_interval),
        sliding_window=_window(values, variant),
        n_sliding=_n_sliding(values, variant),
    )


def _linears(values: Mapping[str, Any], query: int, kv: int, qkv_bias: bool | None) -> tuple[Linear, ...]:
    width, mlp = values["hidden_size"], values["intermediate_size"]
    bias = bool(values.get("attention_bias")) if qkv_bias is None else qkv_bias
    output_bias = bias and qkv_bias is None
    mlp_bias = bool(values.get("mlp_bias"))
    return (
        Linear(name="q_proj", role="qkv", inputs=width, outputs=query, bias=bias),
        Linear(name="k_proj", role="qkv", inputs=width, outputs=kv, bias=bias),
        Linear(name="v_proj", role="qkv", inputs=width, outputs=kv, bias=bias),
        Linear(name="o_proj", role="attention output", inputs=query, outputs=width, bias=output_bias),
        Linear(name="gate_proj", role="mlp input", inputs=width, outputs=mlp, bias=mlp_bias),
        Linear(name="up_proj", role="mlp input", inputs=width, outputs=mlp, bias=mlp_bias),
        Linear(name="down_proj", role="mlp output", inputs=mlp, outputs=width, bias=mlp_bias),
    )


def _n_rotary(values: Mapping[str, Any], rope_interval: int) -> int:
    n_layer = values["num_hidden_layers"]
    if not rope_interval:
        return n_layer
    listed = values.get("no_rope_layers")  # 1 for a block that rotates
    return sum(listed) if listed else n_layer - n_layer // (values.get("no_rope_layer_interval") or rope_interval)


def _window(values: Mapping[str, Any], variant: Variant) -> int:
    """Tokens of the window; 0 where none is in use."""
    in_use = values.get("use_sliding_window", False) if variant.has_window is None else variant.has_window
    if not in_use:
        return 0
    return values.get("sliding_window", variant.window) or 0


def _n_sliding(values: Mapping[str, Any], variant: Variant) -> int:
    n_layer = values["num_hidden_layers"]
    if not _window(values, variant):
        return 0
    if values.get("layer_types"):
        return values["layer_types"].count("sliding_attention")
    if "max_window_layers" in values and not variant.has_window:
        return max(0, n_layer - values["max_window_layers"])
    pattern = values.get("sliding_window_pattern") or variant.window_pattern
    return n_layer - (n_layer // pattern if pattern > 1 else 0)
