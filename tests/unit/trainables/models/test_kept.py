"""Modules that stay at 16 bits in a 4-bit trial: their names, the loaded base, its bytes, its adapter."""

from dataclasses import replace

import bitsandbytes as bnb
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.families import CASES, N_BLOCKS, UNKNOWN, tiny, write
from trainables.comparison.exported import merged_model
from trainables.cost.memory import LiveStorages
from trainables.cost.predicted_memory import predicted_breakdown, predicted_peak_mib
from trainables.cost.recipe import recipe_of
from trainables.cost.resident import base_bytes, constants_bytes
from trainables.evaluation import held_out
from trainables.models import base_model, lora
from trainables.models.families import family_of_model, generic, shape_in
from trainables.models.kept import resolve_kept, skip_pattern
from trainables.models.layout import Layout, layout_in
from trainables.training.eager import EagerEngine
from trainables.training.step_cost import owners_of
from trainables.trial import Trial
from trainables.values.config import TrialConfig, canonical_json
from trainables.values.errors import ConfigError

BLOCK, MODULE = "transformer.h.0", "transformer.h.1.mlp.c_fc"
KEPT = (BLOCK, MODULE)


def layout_of(model) -> Layout:
    family = family_of_model(model)
    blocks = []
    for block in family.blocks_of(model):
        blocks.append({name: tuple(module.weight.shape) for name, module in family.modules_in(block).items()})
    return Layout(family=family, blocks=tuple(blocks))


@pytest.fixture(scope="module")
def kept_config() -> TrialConfig:
    return TrialConfig(
        precision="nf4",
        rank=4,
        alpha=8,
        targets=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        batch_size=2,
        max_length_tokens=64,
        max_steps=4,
        learning_rate=1e-3,
        keep_16bit=KEPT,
    )


@pytest.mark.parametrize("case", [*CASES, *UNKNOWN], ids=lambda case: case.name)
def test_the_names_are_those_that_transformers_gives_its_blocks_and_modules(case):
    model = tiny(case)
    family, modules = family_of_model(model), dict(model.named_modules())
    for number, block in enumerate(family.blocks_of(model)):
        assert modules[family.name_of(number)] is block
        for target, module in family.modules_in(block).items():
            assert modules[family.name_of(number, target)] is module


@given(st.data())
def test_equal_sets_of_modules_are_one_tuple_however_they_are_said(data):
    """Said as blocks and modules in any order and more than once, against plain sets of modules."""
    layout = layout_of(tiny(CASES[1]))
    blocks = {}
    for b in range(N_BLOCKS):
        blocks[f"model.layers.{b}"] = {layout.family.name_of(b, target) for target in layout.family.targets}
    every = sorted(set.union(*blocks.values()))
    said = data.draw(st.lists(st.sampled_from([*blocks, *every])))
    meant = set()
    for name in said:
        meant |= blocks.get(name, {name})
    resolved = resolve_kept(said, layout)
    assert resolve_kept(sorted(meant), layout) == resolved == resolve_kept(resolved, layout)
    assert set().union(*(blocks.get(name, {name}) for name in resolved)) == meant


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("transformer.h.9", "transformer.h.0"),
        ("transformer.h.0.mlp.c_fcc", "transformer.h.0.mlp.c_fc"),
        ("transformer.h.0.mlp", "transformer.h.0.mlp.c_fc"),
        ("lm_head", "blocks to transformer.h.1"),
    ],
)
def test_what_is_no_block_or_linear_module_of_the_base_is_refused_with_what_is(name, near):
    with pytest.raises(ConfigError, match="keep_16bit") as refused:
        resolve_kept([name], layout_of(tiny(CASES[0])))
    assert near in str(refused.value)


def test_the_named_modules_keep_their_weights_and_all_others_are_at_4_bits(cache):
    exact, kept = cache.base("16bit"), cache.base("nf4", KEPT)
    modules, originals = dict(kept.named_modules()), dict(exact.named_modules())
    four_bit = {name for name, module in modules.items() if isinstance(module, bnb.nn.Linear4bit)}
    linear = {name for name, module in originals.items() if generic.is_linear(module) and name != "lm_head"}
    stay = {name for name in linear if name.startswith(f"{BLOCK}.")} | {MODULE}
    assert len(stay) == 5
    assert four_bit == linear - stay
    for name in stay:
        assert torch.equal(modules[name].weight, originals[name].weight)
    assert cache.base("nf4") is not kept is cache.base("nf4", KEPT)


def test_a_name_that_only_the_loaded_base_can_deny_is_refused_too(workload):
    with pytest.raises(ConfigError, match=r"no module 'transformer\.h\.7'; did you mean 'transformer\.h\.\d"):
        base_model.load(workload, "nf4", "cpu", keep_16bit=("transformer.h.7",))


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[8]], ids=lambda case: case.name)
def test_predicted_weights_and_constants_are_the_bytes_of_the_loaded_base(case, tmp_path, workload):
    folder = write(case, tmp_path)
    layout = layout_in(folder)
    target = layout.family.targets[-1]
    names = resolve_kept([layout.family.name_of(0), layout.family.name_of(1, target)], layout)
    config = TrialConfig(precision="nf4", rank=4, alpha=8, targets=layout.family.targets, keep_16bit=names)
    base = base_model.load(replace(workload, base_folder=str(folder)), "nf4", "cpu", keep_16bit=names)
    shape, recipe = shape_in(folder), recipe_of(config, "float32")
    with LiveStorages() as storages:
        storages.see(list(base.parameters()))
    assert base_bytes(shape, recipe) == storages.live_bytes
    model = lora.attach(base, config, base_name="tiny")
    engine = EagerEngine(model, config, compute_dtype="float32", device="cpu")
    with LiveStorages() as storages:
        storages.see(owners_of(model, engine)["quantization_constants"])
    assert constants_bytes(shape, recipe) == storages.live_bytes


def test_a_trial_trains_over_the_kept_modules_and_its_merged_model_has_its_loss(cache, workload, kept_config):
    trial = Trial(kept_config, cache)
    try:
        last = [*trial.measurements()][-1]
        files = trial.adapter_files()
    finally:
        trial.close()
    merged = merged_model(workload, kept_config.base_form, files)
    rows = cache.rows["validation"]
    assert held_out.eval_loss(merged.float(), rows) == pytest.approx(last.eval_loss_nats, abs=5e-3)
    rounded = merged_model(workload, ("nf4", ()), files)
    assert not torch.equal(merged.get_submodule(MODULE).weight, rounded.get_submodule(MODULE).weight)


def test_the_predicted_peak_lies_between_those_of_both_precisions(tmp_path, kept_config):
    shape = shape_in(write(CASES[0], tmp_path))
    plain = replace(kept_config, keep_16bit=())
    peaks = [predicted_peak_mib(shape, c, "bfloat16") for c in (plain, kept_config, plain.at_other_precision)]
    assert peaks == sorted(set(peaks))
    parts = predicted_breakdown(shape, kept_config, "bfloat16")
    assert parts.quantization_constants_mib < predicted_breakdown(shape, plain, "bfloat16").quantization_constants_mib


def test_what_is_kept_is_part_of_key_and_cost_key_and_left_out_where_nothing_is(kept_config, workload):
    plain = replace(kept_config, keep_16bit=())
    assert "keep_16bit" not in canonical_json(plain.to_dict()) + plain.cost_key
    assert len({c.cost_key for c in (plain, kept_config, plain.at_other_precision)}) == 3
    assert workload.key(plain) != workload.key(kept_config)
    assert TrialConfig.from_dict(kept_config.to_dict()) == kept_config
    assert kept_config.at_other_precision == plain.at_other_precision


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"precision": "16bit"}, "precision is 16bit"),
        ({"keep_16bit": "h.0"}, "names of modules"),
        ({"keep_16bit": ("h.0", "h.0")}, "distinct"),
    ],
)
def test_a_config_that_cannot_keep_them_is_refused(kept_config, change, words):
    with pytest.raises(ConfigError, match=words):
        replace(kept_config, **change)


@pytest.mark.parametrize("name", ["model.layers.1", "model.layers.1.mlp.gate"])
def test_no_version_of_transformers_takes_a_kept_name_for_the_beginning_of_another(name):
    import re

    from transformers.quantizers.quantizers_utils import should_convert_module

    pattern = skip_pattern(name)
    inside, others = f"{name}.q_proj" if name.endswith("1") else name, ("model.layers.10.q_proj", f"{name}_proj")
    assert re.match(pattern, inside)  # as versions without a boundary at its end read it
    assert not should_convert_module(inside, [pattern])
    for other in others:
        assert not re.match(pattern, other)
        assert should_convert_module(other, [pattern])
