"""Every model family against transformers' and peft's own forward, on tiny seeded models of its variants."""

import pytest
import torch

from tests.support.families import CASES, N_BLOCKS, every_case, tiny
from trainables.data.tokens import IGNORE
from trainables.models import lora
from trainables.models.chunked_loss import supervised
from trainables.models.families import FAMILIES, family_of, ordered_targets
from trainables.models.head import has_plain_head, logits_of, own_logits
from trainables.models.lean import (
    adapted_layers,
    is_conv1d,
    is_plain_lora,
    lean_loss,
    lean_modules,
)
from trainables.training.engine import standard_loss
from trainables.values.config import TrialConfig

N_WORDS = 97
IDS = torch.randint(1, N_WORDS, (3, 20), generator=torch.Generator().manual_seed(0))
LABELS = torch.where(torch.arange(20) < 6, IGNORE, IDS)


def test_the_list_has_every_type_of_every_family():
    assert {case.model_type for case in CASES} == {name for family in FAMILIES for name in family.model_types}


def adapted(case):
    """The tiny model with an adapter on all targets that is not without effect."""
    config = TrialConfig(precision="16bit", rank=4, alpha=8, targets=case.family.targets, dropout=0.0)
    model = lora.attach(tiny(case), config, base_name=case.name)
    generator = torch.Generator().manual_seed(1)
    for name, matrix in lora.matrices_of(model).items():
        if "lora_B" in name:
            matrix.data.normal_(0, 0.1, generator=generator)
    return model


def assert_equal_within_rounding(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Within 1e-5 of the largest value: sums in another order differ by that in float32."""
    scale = float(theirs.detach().abs().max())
    assert scale > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * scale)


@every_case
@torch.no_grad()
def test_the_lean_loops_logits_of_a_bare_base_are_those_of_transformers(case):
    base = tiny(case, torch.float64)
    expected = base(input_ids=IDS, use_cache=False).logits
    with lean_modules(base):
        states = base.base_model(input_ids=IDS, use_cache=False).last_hidden_state
    logits = logits_of(base, states.flatten(0, 1))[:, :N_WORDS]
    torch.testing.assert_close(logits.view_as(expected), expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 0.1


@every_case
@torch.no_grad()
def test_logits_come_from_the_heads_weight_where_that_is_all_and_else_from_the_models_own_forward(case):
    base = tiny(case, torch.float64)
    states = base.base_model(input_ids=IDS, use_cache=False).last_hidden_state.flatten(0, 1)
    torch.testing.assert_close(logits_of(base, states)[:, :N_WORDS], own_logits(base, states), rtol=1e-9, atol=1e-9)
    assert has_plain_head(base) == (case.name != "Gemma 3, capped logits")
    assert not any("forward" in vars(module) for module in base.modules())


@every_case
@pytest.mark.parametrize("training", [True, False])
def test_the_lean_loops_logits_with_an_adapter_are_those_of_peft(case, training):
    """In training by LoraLinear, in evaluation by read_through; on every module that the family names."""
    model = adapted(case).train(training)
    layers = adapted_layers(model)
    assert len(layers) == N_BLOCKS * len(case.family.targets)
    assert all(map(is_plain_lora, layers))
    with torch.set_grad_enabled(training):
        expected = model(input_ids=IDS, use_cache=False).logits
        with lean_modules(model):
            logits = model(input_ids=IDS, use_cache=False).logits
        with model.disable_adapter():
            bare = model(input_ids=IDS, use_cache=False).logits
    assert_equal_within_rounding(logits, expected)
    assert (expected - bare).abs().max() > 0.1, "the adapter does nothing"


@every_case
def test_the_lean_loops_gradients_of_every_matrix_are_those_of_autograd_through_peft(case):
    model = adapted(case).train()
    matrices = lora.matrices_of(model)
    assert len(matrices) == 2 * N_BLOCKS * len(case.family.targets)
    stock = standard_loss(model, IDS, LABELS)
    expected = torch.autograd.grad(stock, list(matrices.values()))
    lean = lean_loss(model, IDS, *supervised(LABELS))
    found = torch.autograd.grad(lean, list(matrices.values()))
    assert lean.item() == pytest.approx(stock.item(), rel=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        assert_equal_within_rounding(ours, theirs)


@every_case
@torch.no_grad()
def test_targets_are_all_linear_modules_of_a_block_in_the_order_of_a_forward_pass(case):
    base = tiny(case)
    assert family_of(base.config.model_type) is case.family
    blocks = case.family.blocks_of(base)
    assert len(blocks) == N_BLOCKS
    for block in blocks:
        called: list[torch.nn.Module] = []
        for module in block.modules():
            if is_conv1d(module) or isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda *_, module=module, called=called: called.append(module))
        base(input_ids=IDS, use_cache=False)
        assert called == list(case.family.modules_in(block).values())
        assert tuple(case.family.modules_in(block)) == case.family.targets
    assert ordered_targets(reversed(case.family.targets)) == case.family.targets


@every_case
@torch.no_grad()
def test_weights_have_the_layout_and_the_sizes_that_the_family_says(case):
    base = tiny(case)
    shape = case.family.shape_of(base.config.to_dict())
    for name, module in case.family.modules_in(case.family.blocks_of(base)[0]).items():
        sizes = {}

        def note(_, inputs, output, sizes=sizes):
            sizes["inputs"], sizes["outputs"] = inputs[0].shape[-1], output.shape[-1]

        module.register_forward_hook(note)
        base(input_ids=IDS, use_cache=False)
        inputs, outputs = sizes["inputs"], sizes["outputs"]
        assert tuple(module.weight.shape) == ((inputs, outputs) if case.family.is_transposed else (outputs, inputs))
        assert is_conv1d(module) == case.family.is_transposed
        if shape is not None:
            assert shape.modules[name] == (inputs, outputs)


@every_case
def test_without_the_dropouts_that_the_family_names_a_base_has_none(case):
    base = tiny(case).train()
    assert not [module for module in base.modules() if isinstance(module, torch.nn.Dropout) and module.p > 0]
    with torch.no_grad():
        first, second = (base(input_ids=IDS, use_cache=False).logits for _ in range(2))
    assert torch.equal(first, second)
