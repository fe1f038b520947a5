"""Bytes that stay on the device, against real tensors of transformers, peft, torch and bitsandbytes on a CPU."""

from dataclasses import replace

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from trainables.cost.recipe import Recipe, stock
from trainables.cost.resident import adapter_bytes, base_bytes, constants_bytes, moments_bytes
from trainables.models.families.gated import TARGETS, gated_shape

SIZES = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
CASES = {
    "llama": SIZES,
    "qwen2": SIZES | {"tie_word_embeddings": True},
    "qwen3": SIZES | {"head_dim": 64},
    "gemma3_text": SIZES | {"head_dim": 64},
}
RECIPE = stock(
    precision="nf4",
    rank=40,
    targets=TARGETS[:4],
    batch_size=1,
    max_length_tokens=8,
    compute_dtype="float16",
)


def shape_named(case):
    return gated_shape(AutoConfig.for_model(case, **CASES[case]).to_dict())


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder with random weights of a case, made once."""
    folders = {}

    def made(case):
        if case not in folders:
            folders[case] = tmp_path_factory.mktemp("base")
            AutoModelForCausalLM.from_config(AutoConfig.for_model(case, **CASES[case])).save_pretrained(folders[case])
        return folders[case]

    return made


def loaded(folder, recipe: Recipe):
    quantization = None
    if recipe.is_quantized:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=recipe.double_quantization,
            bnb_4bit_compute_dtype=torch.float16,
        )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, quantization_config=quantization)
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False) if recipe.prepare_kbit else model


def n_bytes(tensors):
    """Bytes of distinct storages."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def constants_of(state):
    mine = [state.absmax, state.code]
    return [*mine, state.offset, state.state2.absmax, state.state2.code] if state.nested else mine


KINDS = {
    "16 bits": {"precision": "16bit"},
    "16 bits, prepared": {"precision": "16bit", "prepare_kbit": True},
    "4 bits": {"double_quantization": False},
    "4 bits twice": {},
    "4 bits, prepared": {"double_quantization": False, "prepare_kbit": True},
    "4 bits twice, prepared": {"prepare_kbit": True},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("case", CASES)
def test_the_base_and_its_constants_take_the_bytes_of_real_tensors(case, kind, folder_of):
    recipe = replace(RECIPE, **kind)
    weights = list(loaded(folder_of(case), recipe).parameters())
    states = [weight.quant_state for weight in weights if hasattr(weight, "quant_state")]
    assert base_bytes(shape_named(case), recipe) == n_bytes(weights)
    assert constants_bytes(shape_named(case), recipe) == sum(n_bytes(constants_of(state)) for state in states)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_the_adapter_and_its_moments_take_the_bytes_of_real_tensors(optimizer, folder_of):
    """Of bitsandbytes' optimizer the states that it says it would make: it makes none on a CPU."""
    recipe = replace(RECIPE, optimizer=optimizer, precision="16bit")
    model = loaded(folder_of("llama"), recipe)
    model = get_peft_model(model, LoraConfig(r=recipe.rank, target_modules=list(recipe.targets)))
    matrices = [p for p in model.parameters() if p.requires_grad]
    assert adapter_bytes(shape_named("llama"), recipe) == n_bytes(matrices)
    assert moments_bytes(shape_named("llama"), recipe) == sum(_moment_bytes(p, optimizer) for p in matrices)
    assert {p.numel() < 4096 for p in matrices} == {True, False}, "both sides of bitsandbytes' limit"


def _moment_bytes(parameter, optimizer):
    parameter.grad = torch.zeros_like(parameter)
    make = bitsandbytes.optim.AdamW8bit if optimizer == "adamw_8bit" else torch.optim.AdamW
    made = make([parameter])
    if optimizer == "adamw":
        made.step()
    else:
        group = made.param_groups[0]
        made.init_state(group, parameter, 0, 0)
    state = made.state[parameter]
    names = ("exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2")
    return sum(n_bytes([state[name]]) for name in names if name in state)


def test_paged_moments_lie_on_the_host_but_small_ones():
    shape = shape_named("llama")
    wide = replace(RECIPE, rank=1024, targets=("q_proj",))
    assert moments_bytes(shape, replace(wide, optimizer="paged_adamw_32bit")) == 0
    assert moments_bytes(shape, replace(RECIPE, optimizer="paged_adamw_32bit")) == moments_bytes(shape, RECIPE)


def test_trl_puts_embeddings_and_head_back_to_bfloat16():
    """peft_module_casting_to_bf16 of TRL: norms stay in float32."""
    shape = shape_named("llama")
    plain, trl = (replace(RECIPE, prepare_kbit=True, compute_dtype="bfloat16", autocast=a) for a in (False, True))
    assert base_bytes(shape, plain) - base_bytes(shape, trl) == 2 * 2 * 512 * 128
