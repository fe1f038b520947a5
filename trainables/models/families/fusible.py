"""What the blocks of a family have that can be fused: a table by `model_type` of classes in transformers' modules."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusible:
    """Names in transformers of a family's RMSNorm and gated feed-forward layer; its rotary function has one in all.

    Attributes:
        modeling: module that has them, and `apply_rotary_pos_emb`.
        norm: class of every norm: x / rms(x) times a weight.
        epsilon: the norm's attribute that holds its epsilon.
        norm_offset: what is added to the weight.
        mlp: class of down_proj(activation(gate_proj(x)) * up_proj(x)).
        activation: field of the config that names the activation.
    """

    modeling: str
    norm: str
    epsilon: str = "variance_epsilon"
    norm_offset: float = 0.0
    mlp: str
    activation: str = "hidden_act"


def _of(package: str, prefix: str) -> Fusible:
    return Fusible(
        modeling=f"transformers.models.{package}.modeling_{package}", norm=f"{prefix}RMSNorm", mlp=f"{prefix}MLP"
    )


FUSIBLE: Mapping[str, Fusible] = {
    "llama": _of("llama", "Llama"),
    "mistral": _of("mistral", "Mistral"),
    "qwen2": _of("qwen2", "Qwen2"),
    "qwen3": _of("qwen3", "Qwen3"),
    "smollm3": _of("smollm3", "SmolLM3"),
    "gemma3_text": Fusible(
        modeling="transformers.models.gemma3.modeling_gemma3",
        norm="Gemma3RMSNorm",
        epsilon="eps",
        norm_offset=1.0,
        mlp="Gemma3MLP",
        activation="hidden_activation",
    ),
}
