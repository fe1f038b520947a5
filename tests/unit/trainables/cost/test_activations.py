"""What the forward pass keeps, counted by hand, against the storages of real steps on a CPU."""

import warnings
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from trainables.cost.memory import LiveStorages, peak_of
from trainables.cost.predicted_memory import moments, predicted_breakdown
from trainables.cost.recipe import stock
from trainables.cost.resident import adapter_bytes, base_bytes, moments_bytes
from trainables.models import base_model, lora
from trainables.models.families import gpt2
from trainables.models.families.gated import TARGETS, VARIANTS, gated_shape
from trainables.training.eager import EagerEngine
from trainables.values.config import TrialConfig
from trainables.values.results import MIB

ROWS, LENGTH = 4, 64
SIZES = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CASES = {
    "gpt2": {"vocab_size": 2048, "n_embd": 128, "n_layer": 2, "n_head": 8, "n_positions": 256},
    "llama": SIZES,
    "mistral, longer than its window": SIZES | {"sliding_window": 32},
    "qwen2": SIZES,
    "qwen3": SIZES | {"head_dim": 32},
    "smollm3": SIZES,
    "gemma3_text": SIZES | {"head_dim": 32, "sliding_window": 512},
    "gemma3_text, longer than its window": SIZES | {"head_dim": 32, "sliding_window": 32, "sliding_window_pattern": 2},
}
IDS = torch.randint(2048, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))


def config_named(case):
    return AutoConfig.for_model(case.partition(",")[0], **CASES[case])


def shape_named(case):
    values = config_named(case).to_dict()
    return (gated_shape if values["model_type"] in VARIANTS else gpt2.shape_of)(values)


@pytest.fixture(scope="module", params=CASES)
def base(request, workload, tmp_path_factory):
    """Each case in bfloat16, with its name."""
    folder = tmp_path_factory.mktemp("base")
    AutoModelForCausalLM.from_config(config_named(request.param)).save_pretrained(folder)
    loaded = base_model.load(replace(workload, base_folder=str(folder), compute_dtype="bfloat16"), "16bit", "cpu")
    return request.param, loaded


@pytest.mark.parametrize(("loop", "some"), [("standard", slice(2, None, 2)), ("lean", slice(None))], ids=str)
def test_what_a_loop_keeps_is_counted_within_1_per_cent_of_a_real_step(base, loop, some):
    case, model = base
    shape = shape_named(case)
    targets = (gpt2.TARGETS if case == "gpt2" else TARGETS)[some]
    config = TrialConfig(
        precision="16bit", rank=8, alpha=8, targets=targets, dropout=0.05, max_length_tokens=LENGTH, loop=loop
    )
    adapted = lora.attach(model, config, base_name=case)
    engine = EagerEngine(adapted, config, compute_dtype="bfloat16", device="cpu")
    engine.step(IDS, IDS)
    owners = {"base_weights": [*adapted.parameters(), *adapted.buffers()], "optimizer": _moments(engine)}
    kept = peak_of(lambda: engine.step(IDS, IDS), "cpu", lambda: owners).breakdown.activations_mib
    lora.detach(adapted)
    predicted = predicted_breakdown(shape, config, "bfloat16").activations_mib
    assert predicted == pytest.approx(kept, rel=0.01)


def _moments(engine):
    return [t for slots in engine.optimizer.state.values() for t in slots.values() if torch.is_tensor(t)]


STOCK = {
    "checkpointing": {"gradient_checkpointing": True},
    "no checkpointing": {},
    "a wide adapter": {"gradient_checkpointing": True, "rank": 64},
}


@pytest.mark.parametrize("settings", STOCK.values(), ids=STOCK)
@pytest.mark.parametrize("case", ["llama", "gemma3_text"])
def test_a_plain_script_peaks_where_it_is_predicted_to(case, settings):
    """As written by hand with transformers and peft, in float16; no dropout, whose masks have other sizes on a CPU."""
    recipe = stock(
        precision="16bit",
        targets=TARGETS[:4],
        batch_size=ROWS,
        max_length_tokens=LENGTH,
        compute_dtype="float16",
        **{"rank": 8} | settings,
    )
    shape = shape_named(case)
    resident = base_bytes(shape, recipe) + adapter_bytes(shape, recipe) + moments_bytes(shape, recipe)
    predicted = resident + max(moment.total for moment in moments(shape, recipe))
    assert predicted / MIB == pytest.approx(_peak_mib(case, recipe), rel=0.03)


def _peak_mib(case, recipe):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _script(AutoModelForCausalLM.from_config(config_named(case), dtype=torch.float16), recipe)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        out = model(input_ids=IDS, labels=IDS)
        out.loss.backward()
        optimizer.step()

    step()
    with LiveStorages("cpu") as storages:
        storages.see([list(model.parameters()), list(optimizer.state.values())])
        storages.reset_peak()
        step()
    return storages.peak_bytes / MIB


def _script(model, recipe):
    """The model as a plain script tunes it."""
    model = get_peft_model(model, LoraConfig(r=recipe.rank, lora_alpha=8, target_modules=list(recipe.targets)))
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()
