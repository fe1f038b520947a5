"""Shapes read from a config.json against the real modules of transformers, made without memory."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from trainables.models.families import gpt2
from trainables.models.families.gated import VARIANTS, gated_shape

SIZES = {
    "vocab_size": 512,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
CASES = {
    "gpt2": ("gpt2", {"vocab_size": 512, "n_embd": 96, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "llama": ("llama", SIZES),
    "llama, tied": ("llama", SIZES | {"tie_word_embeddings": True}),
    "llama, biases": ("llama", SIZES | {"attention_bias": True, "mlp_bias": True}),
    "mistral, heads of another width": ("mistral", SIZES | {"head_dim": 24}),
    "mistral, all tokens": ("mistral", SIZES | {"sliding_window": None}),
    "qwen2": ("qwen2", SIZES),
    "qwen2, a window": ("qwen2", SIZES | {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 2}),
    "qwen3": ("qwen3", SIZES | {"head_dim": 32}),
    "smollm3": ("smollm3", SIZES),
    "gemma3_text": ("gemma3_text", SIZES | {"head_dim": 32, "sliding_window": 64}),
    "gemma3_text, a pattern": ("gemma3_text", SIZES | {"head_dim": 32, "sliding_window_pattern": 2}),
}
every_case = pytest.mark.parametrize(("model_type", "sizes"), CASES.values(), ids=CASES)


def config_of(model_type, sizes):
    return AutoConfig.for_model(model_type, **sizes)


def on_disk(config, folder):
    """The values of the config.json that transformers writes."""
    config.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def shape_in(values):
    return (gated_shape if values["model_type"] in VARIANTS else gpt2.shape_of)(values)


def without_memory(config):
    """The model with weights that have a shape and no bytes."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def blocks_of(model):
    return model.base_model.h if hasattr(model.base_model, "h") else model.base_model.layers


@every_case
def test_the_linear_modules_are_those_of_a_block(model_type, sizes, tmp_path):
    config = config_of(model_type, sizes)
    shape = shape_in(on_disk(config, tmp_path))
    blocks = blocks_of(without_memory(config))
    found = {}
    for name, module in blocks[0].named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            rows, columns = module.weight.shape
            inputs_outputs = (rows, columns) if isinstance(module, Conv1D) else (columns, rows)
            found[name] = (inputs_outputs, module.bias is not None)
    assert len(blocks) == shape.n_layer
    assert len(found) == len(shape.linears)
    for linear in shape.linears:
        (name,) = [name for name in found if name.endswith(linear.name)]
        assert found[name] == ((linear.inputs, linear.outputs), linear.bias)


@every_case
def test_weights_are_counted_by_their_kind(model_type, sizes, tmp_path):
    config = config_of(model_type, sizes)
    shape, model = shape_in(on_disk(config, tmp_path)), without_memory(config)
    linear = [m.weight for b in blocks_of(model) for m in b.modules() if isinstance(m, torch.nn.Linear | Conv1D)]
    tables = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    head = model.get_output_embeddings().weight
    assert (head is model.get_input_embeddings().weight) == shape.tied_head
    tables += [] if shape.tied_head else [head]
    assert shape.n_linear_weights == sum(weight.numel() for weight in linear)
    assert shape.n_embedding_weights == sum(weight.numel() for weight in tables)
    assert shape.n_weights == sum(weight.numel() for weight in model.parameters())


@every_case
def test_windows_and_rotations_are_those_of_the_config(model_type, sizes, tmp_path):
    config = config_of(model_type, sizes)
    shape = shape_in(on_disk(config, tmp_path))
    attention = [getattr(block, "self_attn", None) for block in blocks_of(without_memory(config))]
    if model_type == "mistral":
        n_sliding = shape.n_layer if config.sliding_window else 0
    else:
        n_sliding = sum(bool(getattr(a, "sliding_window", None)) for a in attention)
    assert shape.n_sliding == n_sliding
    if n_sliding:
        assert shape.sliding_window == config.sliding_window
    assert shape.n_rotary == (0 if model_type == "gpt2" else sum(bool(getattr(a, "use_rope", True)) for a in attention))
    assert shape.context_tokens == config.max_position_embeddings


def test_a_config_without_what_has_a_default_is_read_as_transformers_reads_it():
    """Of a Mistral from before there were lists of layers, as published."""
    bare = SIZES | {"hidden_act": "silu", "sliding_window": 64}
    mistral = gated_shape(bare | {"model_type": "mistral"})
    assert (mistral.n_sliding, mistral.sliding_window, mistral.tied_head) == (6, 64, False)
    gemma = gated_shape(bare | {"model_type": "gemma3_text"})
    assert (gemma.n_sliding, gemma.tied_head, gemma.n_block_norms) == (5, True, 4)
    assert gated_shape(bare | {"model_type": "qwen2"}).n_sliding == 0
    assert gated_shape(bare | {"model_type": "smollm3"}).n_rotary == 5
    assert gated_shape(bare | {"num_key_value_heads": None} | {"model_type": "llama"}).n_kv_head == 6


@pytest.mark.parametrize("model_type", sorted(VARIANTS))
@pytest.mark.parametrize("uses_window", [None, True])
def test_heads_and_windows_that_a_config_leaves_out_are_transformers_own(model_type, uses_window):
    values = {"hidden_size": 512, "num_attention_heads": 32, "num_hidden_layers": 30, "intermediate_size": 64}
    values |= {"vocab_size": 97, "max_position_embeddings": 64}
    values |= {} if uses_window is None else {"use_sliding_window": uses_window, "max_window_layers": 10}
    config = AutoConfig.for_model(model_type, **values)
    shape = gated_shape({"model_type": model_type, "hidden_act": "silu"} | values)
    assert shape.n_kv_head == config.num_key_value_heads
    assert shape.head_dim == (getattr(config, "head_dim", None) or 16)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if model_type == "mistral" else ""] * 30
    assert shape.n_sliding == kinds.count("sliding_attention")
    assert shape.sliding_window == (config.sliding_window if shape.n_sliding else 0)


def test_an_activation_that_is_not_known_has_no_shape():
    assert gated_shape(SIZES | {"model_type": "llama", "hidden_act": "xielu"}) is None


def test_groups_name_the_modules_of_a_family():
    llama = gated_shape(SIZES | {"hidden_act": "silu"} | {"model_type": "llama"})
    assert llama.group("qkv") == ("q_proj", "k_proj", "v_proj")
    assert llama.group("attention") == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert llama.group("mlp") == ("gate_proj", "up_proj", "down_proj")
    medium = gpt2.HUB_SHAPES["gpt2-medium"]
    assert medium.group("qkv") == ("attn.c_attn",)
    assert medium.group("all-linear") == gpt2.TARGETS


@pytest.mark.parametrize(
    ("model_type", "published", "values"),
    [
        ("llama", 134_515_008, {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                                "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
                                "tie_word_embeddings": True}),
        ("qwen2", 494_032_768, {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                                "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
                                "tie_word_embeddings": True}),
        ("mistral", 7_241_732_096, {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                                    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000}),
    ],
    ids=["SmolLM2-135M", "Qwen2.5-0.5B", "Mistral-7B-v0.1"],
)  # fmt: skip
def test_the_hubs_models_have_as_many_weights_as_published(model_type, published, values):
    values = values | {"model_type": model_type, "hidden_act": "silu", "max_position_embeddings": 32768}
    assert gated_shape(values).n_weights == published


def test_an_untied_head_counts_its_own_rows():
    tied = replace(gpt2.HUB_SHAPES["gpt2"], tied_head=True)
    assert replace(tied, tied_head=False).n_weights - tied.n_weights == 50257 * 768
