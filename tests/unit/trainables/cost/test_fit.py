"""Whether a recipe fits, the largest batch, where 4 bits pay: against plain loops, and properties that must hold."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.cost.activations import block_kept
from trainables.cost.fit import Budget, fit_of, last_true, longest_paying_row, peak_mib
from trainables.cost.gpus import GPUS, SMALL_WORKSPACES_MIB, gpu_named
from trainables.cost.predicted_memory import breakdown_of, moments, total_mib
from trainables.cost.recipe import Recipe, stock
from trainables.models.families.gated import TARGETS, VARIANTS, gated_shape
from trainables.models.families.gpt2 import HUB_SHAPES
from trainables.values.errors import ConfigError

SMOLLM2 = gated_shape(
    {
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    }
)
SETTINGS = st.fixed_dictionaries(
    {
        "precision": st.sampled_from(["16bit", "nf4"]),
        "rank": st.sampled_from([1, 8, 64]),
        "targets": st.sets(st.sampled_from(TARGETS), min_size=1).map(lambda s: tuple(t for t in TARGETS if t in s)),
        "batch_size": st.integers(1, 16),
        "max_length_tokens": st.integers(16, 4096),
        "compute_dtype": st.sampled_from(["bfloat16", "float16", "float32"]),
        "dropout": st.booleans(),
        "double_quantization": st.booleans(),
        "gradient_checkpointing": st.booleans(),
        "optimizer": st.sampled_from(["adamw", "adamw_8bit", "paged_adamw_8bit"]),
    }
)
KINDS = st.sampled_from(["stock", "prepared", "lean", "standard"])
SHAPES = st.sampled_from(
    [
        SMOLLM2,
        HUB_SHAPES["gpt2"],
        *(
            gated_shape(
                {
                    "model_type": model_type,
                    "hidden_act": "silu",
                    "hidden_size": 512,
                    "intermediate_size": 1024,
                    "num_hidden_layers": 8,
                    "num_attention_heads": 8,
                    "num_key_value_heads": 2,
                    "vocab_size": 4096,
                    "sliding_window": 512,
                    "max_position_embeddings": 8192,
                }
            )
            for model_type in VARIANTS
        ),
    ]
)


def recipe_of(settings, kind, shape=SMOLLM2):
    names = tuple(shape.modules)
    settings = settings | {"targets": tuple(t for t in settings["targets"] if t in names) or names[:1]}
    if kind in ("lean", "standard"):
        return Recipe(**settings, script=kind, adapter_dtype=settings["compute_dtype"])
    return stock(**settings, prepare_kbit=kind == "prepared")


@given(SHAPES, SETTINGS, KINDS, st.sampled_from(["rank", "batch_size", "max_length_tokens"]))
def test_more_of_anything_never_needs_less(shape, settings, kind, name):
    recipe = recipe_of(settings, kind, shape)
    more = replace(recipe, **{name: 2 * getattr(recipe, name)})
    assert total_mib(breakdown_of(shape, recipe)) < total_mib(breakdown_of(shape, more)) + 17  # pages of 2 MiB
    assert peak_mib(shape, replace(recipe, rank=64), Budget()) >= peak_mib(shape, replace(recipe, rank=1), Budget())


@given(SHAPES, SETTINGS, KINDS)
def test_the_parts_are_none_of_them_negative_and_add_up_to_the_peak(shape, settings, kind):
    fit = fit_of(shape, recipe_of(settings, kind, shape), Budget(memory_mib=8000))
    parts = fit.to_dict()["breakdown"]
    assert min(parts.values()) >= 0
    assert fit.to_dict()["peak_mib"] == pytest.approx(sum(parts.values()), abs=0.1)
    largest = max(moment.total for moment in moments(shape, fit.recipe)) / 2**20
    assert fit.resident_mib + largest + SMALL_WORKSPACES_MIB <= fit.peak_mib + 0.01
    assert fit.fits == (fit.peak_mib <= 8000)


@given(SHAPES, SETTINGS, KINDS)
def test_checkpointing_needs_no_more_than_a_single_block_would(shape, settings, kind):
    recipe = recipe_of(settings | {"gradient_checkpointing": False}, kind, shape)
    kept, again = (peak_mib(shape, replace(recipe, gradient_checkpointing=again), Budget()) for again in (False, True))
    assert again <= kept + sum(block_kept(shape, recipe)) * recipe.n_tokens / shape.n_layer / 2**20


@given(SETTINGS, KINDS, st.floats(100, 20_000))
def test_the_largest_batch_fits_and_one_row_more_does_not(settings, kind, memory_mib):
    recipe = recipe_of(settings, kind)
    most = fit_of(SMOLLM2, recipe, Budget(memory_mib=memory_mib)).largest_batch
    peaks = [peak_mib(SMOLLM2, replace(recipe, batch_size=max(n, 1)), Budget()) for n in (most, most + 1)]
    assert peaks[1] > memory_mib - 17
    assert not most or peaks[0] <= memory_mib


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_longest_paying_row_is_that_of_a_plain_loop(checkpointing):
    settings = {
        "rank": 8,
        "targets": TARGETS[:4],
        "batch_size": 2,
        "max_length_tokens": 1,
        "compute_dtype": "float16",
        "gradient_checkpointing": checkpointing,
    }
    four, sixteen = stock(precision="nf4", prepare_kbit=True, **settings), stock(precision="16bit", **settings)
    paying = [
        length
        for length in range(1, 1200)
        if peak_mib(SMOLLM2, replace(four, max_length_tokens=length), Budget())
        < peak_mib(SMOLLM2, replace(sixteen, max_length_tokens=length), Budget())
    ]
    longest = longest_paying_row(SMOLLM2, four, sixteen, Budget())
    assert longest == pytest.approx(max(paying), abs=64)
    assert 0 < longest < SMOLLM2.context_tokens


@given(SETTINGS)
def test_in_the_lean_loop_4_bits_pay_at_any_row_length(settings):
    recipe = recipe_of(settings | {"compute_dtype": "bfloat16"}, "lean", HUB_SHAPES["gpt2-medium"])
    four, sixteen = replace(recipe, precision="nf4"), replace(recipe, precision="16bit")
    assert longest_paying_row(HUB_SHAPES["gpt2-medium"], four, sixteen, Budget()) == 1024


@given(st.integers(0, 50), st.integers(1, 50))
def test_the_last_true_is_that_of_a_plain_loop(limit, most):
    expected = max([n for n in range(1, most + 1) if n <= limit], default=0)
    assert last_true(lambda n: n <= limit, most) == expected


@pytest.mark.parametrize("name", [*GPUS, "t4", "NVIDIA A100-80GB", "Tesla T4", "rtx 4090", "a100 80gb"])
def test_a_gpu_is_found_by_its_name(name):
    assert gpu_named(name).usable_mib > 8_000


def test_an_unknown_gpu_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no GPU 'H1000'; did you mean 'H100'\?"):
        gpu_named("H1000")
