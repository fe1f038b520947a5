"""A tiny seeded model of every family, in the variants whose arithmetic differs: one list for all tests of families."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from trainables import demo
from trainables.models.base_model import dropouts_of
from trainables.models.families import family_of
from trainables.models.families.family import ModelFamily

N_BLOCKS = 2
WINDOW = 6
"""Tokens that attention sees in the variants with windows; shorter than the rows of any test."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One variant of a family.

    Attributes:
        name: for people.
        model_type: as in config.json.
        values: of the config, beside those that all variants have.
    """

    name: str
    model_type: str
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> ModelFamily:
        family = family_of(self.model_type)
        assert family is not None
        return family


CASES = (
    Case(name="GPT-2", model_type="gpt2"),
    Case(name="Llama", model_type="llama", values={"tie_word_embeddings": True}),
    Case(
        name="Llama, untied, with biases",
        model_type="llama",
        values={"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    ),
    Case(
        name="Llama, square modules, a window that it does not read",
        model_type="llama",
        values={"num_key_value_heads": 4, "intermediate_size": 64, "sliding_window": WINDOW},
    ),
    Case(name="Mistral", model_type="mistral", values={"sliding_window": None}),
    Case(name="Mistral, in a window", model_type="mistral", values={"sliding_window": WINDOW}),
    Case(name="Qwen2", model_type="qwen2", values={"tie_word_embeddings": True}),
    Case(
        name="Qwen2, one block in a window",
        model_type="qwen2",
        values={"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    Case(name="Qwen3", model_type="qwen3", values={"head_dim": 32, "tie_word_embeddings": True}),
    Case(name="SmolLM3", model_type="smollm3", values={"no_rope_layer_interval": 2}),
    Case(
        name="Gemma 3",
        model_type="gemma3_text",
        values={"head_dim": 32, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    Case(
        name="Gemma 3, capped logits",
        model_type="gemma3_text",
        values={"head_dim": 32, "sliding_window": WINDOW, "final_logit_softcapping": 2.0},
    ),
)

UNKNOWN = (
    Case(name="GPT-NeoX", model_type="gpt_neox"),
    Case(name="Phi, a head with a bias", model_type="phi", values={"num_key_value_heads": 4}),
    Case(name="OLMo 2", model_type="olmo2"),
    Case(name="StableLM", model_type="stablelm"),
    Case(
        name="OPT", model_type="opt", values={"ffn_dim": 128, "word_embed_proj_dim": 64, "do_layer_norm_before": True}
    ),
    Case(name="Phi 3, one module for query, key and value", model_type="phi3"),
    Case(name="BLOOM, without positions", model_type="bloom"),
    Case(name="Granite, scaled logits", model_type="granite", values={"logits_scaling": 3.0}),
)
"""Dense decoders that no family describes."""

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def tiny(case: Case, dtype: torch.dtype = torch.float32, *, n_words: int = 97) -> PreTrainedModel:
    """A frozen model of two blocks as base_model.load gives it; wide weights, so that logits differ clearly.

    Biases and norms are drawn too: those of a fresh model are zeros and ones, which hide much.
    """
    values = {
        "hidden_size": 64,
        "num_hidden_layers": N_BLOCKS,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "vocab_size": n_words,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if case.model_type != "gpt2":
        values |= {"num_key_value_heads": 2, "intermediate_size": 128}
    config = AutoConfig.for_model(case.model_type, **values | case.values)
    for name in dropouts_of(config):
        setattr(config, name, 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
    return model.to(dtype).requires_grad_(False).eval()


def write(case: Case, folder: Path, *, n_words: int = 1024, **how: Any) -> Path:
    """The tiny model in a folder with the demo's tokenizer of 1,024 tokens; `how` goes to save_pretrained."""
    tiny(case, n_words=n_words).save_pretrained(folder, **how)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((demo.FOLDER / name).read_bytes())
    return folder
