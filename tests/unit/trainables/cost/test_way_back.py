"""What exists for a moment of the backward pass, counted by hand."""

from dataclasses import replace

import pytest

from trainables.cost.activations import block_kept, recomputed
from trainables.cost.recipe import Recipe
from trainables.cost.way_back import attention_bytes, temporary_bytes
from trainables.models.families.gated import gated_shape

VALUES = {
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 1024,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
}
QUERY, MLP = 8 * 64, 1024
RECIPE = Recipe(
    precision="16bit",
    rank=4,
    targets=("q_proj",),
    batch_size=2,
    max_length_tokens=64,
    compute_dtype="bfloat16",
    script="lean",
    dropout=False,
    adapter_dtype="bfloat16",
)


def shape_with(model_type="llama", **values):
    return gated_shape(VALUES | {"model_type": model_type} | values)


def test_attention_needs_its_gradients_and_that_of_the_queries_in_float32():
    assert attention_bytes(shape_with(), RECIPE) == (4 * 2 + 4) * QUERY


def test_keys_that_heads_share_have_a_gradient_for_each_head_first():
    shared = shape_with(num_key_value_heads=2)
    assert attention_bytes(shared, RECIPE) == (4 * 2 + 4) * QUERY + 2 * 2 * (QUERY // 4)


def test_wide_attention_behind_a_narrow_mlp_is_the_peak_of_the_way_back():
    wide, stream = shape_with(intermediate_size=64), 256 * 2
    freed = 2 * 64 * 2 + stream  # gate(x) and up(x), the norm in front of them
    assert temporary_bytes(wide, RECIPE) == RECIPE.n_tokens * (stream + (4 * 2 + 4) * QUERY - freed)


def test_a_4_bit_weight_is_gone_where_the_activation_is_gone_through():
    """With many tokens the activation's three gradients are the peak, with few the weight and one gradient."""
    nf4 = replace(RECIPE, precision="nf4")
    assert temporary_bytes(shape_with(), nf4) == RECIPE.n_tokens * 2 * MLP + RECIPE.n_tokens * 2 * 256 + 256 * MLP * 2
    many = replace(nf4, batch_size=64)
    assert temporary_bytes(shape_with(), many) == many.n_tokens * (3 * 2 * MLP + 2 * 256)


def test_gemmas_norm_behind_the_mlp_frees_its_input_before_the_activation():
    gemma, llama = shape_with("gemma3_text", head_dim=16), shape_with(head_dim=16)
    assert temporary_bytes(llama, RECIPE) - temporary_bytes(gemma, RECIPE) == RECIPE.n_tokens * 2 * 256


@pytest.mark.parametrize(("script", "n_more"), [("lean", 1), ("standard", 0)])
def test_a_block_that_runs_again_finds_the_stream_in_front_of_it(script, n_more):
    """transformers' own RMSNorm keeps a copy in float32 all the same."""
    recipe = replace(RECIPE, script=script)
    assert len(block_kept(shape_with(), recipe)) - len(recomputed(shape_with(), recipe)) == n_more
