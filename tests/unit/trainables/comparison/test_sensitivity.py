"""Quantizing parts of the base: against the 4-bit base, and against a plain loop."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, OPTConfig

from trainables import demo
from trainables.comparison.sensitivity import (
    Variant,
    measure,
    modules_of,
    quantized,
    read,
    round_trip,
    variants_of,
)
from trainables.evaluation import held_out
from trainables.models import base_model
from trainables.models.families.gpt2 import TARGETS
from trainables.values.errors import ConfigError


def places(n_blocks: int) -> list[tuple[int, str]]:
    return [(block, kind) for block in range(n_blocks) for kind in TARGETS]


@pytest.fixture(scope="module")
def base(workload):
    return base_model.load(workload, "16bit", "cpu")


@pytest.fixture(scope="module")
def rows(splits):
    return splits["validation"][:20]


@pytest.fixture(scope="module")
def unquantized(base, rows):
    return read(base, rows)


# --- which modules, which variants


def test_modules_come_in_the_order_of_blocks_and_of_targets(base):
    assert list(modules_of(base)) == places(2)


@given(st.integers(1, 48))
def test_variants_are_one_of_each_kind_of_question(n_blocks):
    variants = variants_of(places(n_blocks))
    assert len(variants) == 6 * n_blocks + 10
    sizes = {"none": 0, "module": 1, "block": 4, "kind": n_blocks, "all": 4 * n_blocks}
    sizes |= {"all_but_block": 4 * n_blocks - 4, "all_but_kind": 3 * n_blocks}
    assert all(len(v.quantized) == sizes[v.scope] for v in variants)
    assert len({v.label for v in variants}) == len(variants)


@given(st.integers(1, 12))
def test_a_part_and_all_but_it_share_nothing_and_make_up_everything(n_blocks):
    variants = {(v.scope, v.block, v.kind): v.quantized for v in variants_of(places(n_blocks))}
    for (scope, block, kind), part in variants.items():
        if scope in ("block", "kind"):
            rest = variants[f"all_but_{scope}", block, kind]
            assert not part & rest
            assert part | rest == set(places(n_blocks))


# --- the weights


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trips_are_the_weights_that_the_4_bit_base_computes_with(dtype, workload):
    whole, packed = (base_model.load(replace(workload, compute_dtype=dtype), p, "cpu") for p in ("16bit", "nf4"))
    linear = modules_of(packed)
    for place, module in modules_of(whole).items():
        weight = linear[place].weight
        expected = dequantize_4bit(weight.data, weight.quant_state).T
        assert torch.equal(round_trip(module), expected), place


def test_all_quantized_is_the_4_bit_base(base, workload, rows):
    packed = base_model.load(workload, "nf4", "cpu")
    with quantized(modules_of(base), frozenset(places(2))):
        ours = held_out.eval_loss(base, rows)
    assert ours == pytest.approx(held_out.eval_loss(packed, rows), rel=1e-6)
    assert ours != pytest.approx(held_out.eval_loss(base, rows), rel=1e-4)


@pytest.mark.parametrize("fault", [None, RuntimeError])
def test_weights_come_back_bit_for_bit_also_after_an_error(base, fault):
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in base.named_parameters()}

    def use() -> None:
        with quantized(modules_of(base), frozenset(places(2))):
            changed = [name for name, p in base.named_parameters() if not torch.equal(p, before[name][1])]
            assert len(changed) == 8
            if fault:
                raise fault

    if fault:
        with pytest.raises(fault):
            use()
    else:
        use()
    for name, parameter in base.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])


# --- what a variant costs


@torch.no_grad()
def plain_cost(base, variant: Variant, rows) -> tuple[float, float, float]:
    """Loss difference, KL and cosine, one row at a time, with a copy whose weights are overwritten."""
    other = copy.deepcopy(base)
    for block, kind in variant.quantized:
        module = other.transformer.h[block].get_submodule(kind)
        module.weight.copy_(round_trip(module))
    losses, kls, cosines = [], [], []
    for row in rows:
        ids = torch.tensor([row.input_ids])
        answer = slice(row.n_prompt_tokens - 1, -1)
        logs, pooled = [], []
        for model in (base, other):
            out = model(input_ids=ids, use_cache=False, output_hidden_states=True)
            logs.append(out.logits[0, answer].double().log_softmax(dim=-1))
            pooled.append(out.hidden_states[-1][0, answer].double().mean(dim=0))
        targets = ids[0, row.n_prompt_tokens :, None]
        losses += (logs[0] - logs[1]).gather(1, targets).flatten().tolist()
        kls += (logs[0].exp() * (logs[0] - logs[1])).sum(dim=-1).tolist()
        cosines.append(float(torch.cosine_similarity(*pooled, dim=0)))
    return float(np.mean(losses)), float(np.mean(kls)), float(np.mean(cosines))


@pytest.mark.parametrize("scope", ["none", "module", "block", "kind", "all_but_block"])
def test_a_variant_costs_what_a_plain_loop_over_a_copied_model_finds(scope, base, rows, unquantized):
    variant = next(v for v in reversed(variants_of(places(2))) if v.scope == scope)
    found = measure(base, variant, rows, unquantized)
    loss, kl, cosine = plain_cost(base, variant, rows)
    assert found.loss_nats == pytest.approx(loss, abs=2e-5)
    assert found.kl_nats == pytest.approx(kl, rel=1e-3, abs=1e-6)
    assert found.cosine == pytest.approx(cosine, abs=1e-5)
    assert found.n_parameters == sum(
        64 * 64 * {"attn.c_attn": 3, "attn.c_proj": 1}.get(k, 4) for _, k in variant.quantized
    )


def test_nothing_quantized_costs_nothing(base, rows, unquantized):
    found = measure(base, variants_of(places(2))[0], rows, unquantized)
    assert (found.n_parameters, found.loss_nats, found.kl_nats) == (0, 0.0, 0.0)
    assert found.cosine == pytest.approx(1.0, abs=1e-12)


@pytest.fixture(scope="module")
def opt_folder(tmp_path_factory):
    """A tiny OPT: its modules are named otherwise."""
    folder = tmp_path_factory.mktemp("opt")
    shape = OPTConfig(
        hidden_size=16, word_embed_proj_dim=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=1024
    )
    AutoModelForCausalLM.from_config(shape, trust_remote_code=False).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((demo.FOLDER / name).read_bytes())
    return folder


def test_of_a_base_of_no_family_all_linear_modules_of_the_blocks_are_taken(opt_folder):
    opt = AutoModelForCausalLM.from_pretrained(opt_folder, trust_remote_code=False)
    names = ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2")
    assert list(modules_of(opt)) == [(0, name) for name in names]
    opt.model.decoder.layers = torch.nn.ModuleList()
    with pytest.raises(ConfigError, match="'opt' has no list of 1 blocks"):
        modules_of(opt)
