"""Every model family against transformers' and peft's own forward, on a tiny seeded model of each of its types."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trainables.data.tokens import IGNORE
from trainables.models import lora
from trainables.models.chunked_loss import aligned_logits, supervised
from trainables.models.families import FAMILIES, family_of, ordered_targets
from trainables.models.lean import (
    adapted_layers,
    is_conv1d,
    is_plain_lora,
    lean_loss,
    lean_modules,
)
from trainables.training.engine import standard_loss
from trainables.values.config import TrialConfig

N_BLOCKS = 2
N_WORDS = 97
IDS = torch.randint(1, N_WORDS, (3, 20), generator=torch.Generator().manual_seed(0))
LABELS = torch.where(torch.arange(20) < 6, IGNORE, IDS)

every_type = pytest.mark.parametrize(
    ("family", "model_type"), [(family, name) for family in FAMILIES for name in sorted(family.model_types)]
)


def tiny(family, model_type: str, dtype: torch.dtype = torch.float32):
    """A frozen model of two blocks as base_model.load gives it; wide weights, so that logits differ clearly."""
    config = AutoConfig.for_model(
        model_type,
        hidden_size=32,
        num_hidden_layers=N_BLOCKS,
        num_attention_heads=4,
        max_position_embeddings=64,
        vocab_size=N_WORDS,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    for name in family.dropouts:
        setattr(config, name, 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).to(dtype).requires_grad_(False).eval()


def adapted(family, model_type: str):
    """The tiny model with an adapter on all targets that is not without effect."""
    config = TrialConfig(precision="16bit", rank=4, alpha=8, targets=family.targets, dropout=0.0)
    model = lora.attach(tiny(family, model_type), config, base_name=model_type)
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


@every_type
@torch.no_grad()
def test_the_lean_loops_logits_of_a_bare_base_are_those_of_transformers(family, model_type):
    base = tiny(family, model_type, torch.float64)
    expected = base(input_ids=IDS, use_cache=False).logits
    with lean_modules(base):
        states = base.base_model(input_ids=IDS, use_cache=False).last_hidden_state
    logits = aligned_logits(states.flatten(0, 1), base.get_output_embeddings().weight)[:, :N_WORDS]
    torch.testing.assert_close(logits.view_as(expected), expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 0.1


@every_type
@pytest.mark.parametrize("training", [True, False])
def test_the_lean_loops_logits_with_an_adapter_are_those_of_peft(family, model_type, training):
    """In training by LoraLinear, in evaluation by read_through; on every module that the family names."""
    model = adapted(family, model_type).train(training)
    layers = adapted_layers(model)
    assert len(layers) == N_BLOCKS * len(family.targets)
    assert all(map(is_plain_lora, layers))
    with torch.set_grad_enabled(training):
        expected = model(input_ids=IDS, use_cache=False).logits
        with lean_modules(model):
            logits = model(input_ids=IDS, use_cache=False).logits
        with model.disable_adapter():
            bare = model(input_ids=IDS, use_cache=False).logits
    assert_equal_within_rounding(logits, expected)
    assert (expected - bare).abs().max() > 0.1, "the adapter does nothing"


@every_type
def test_the_lean_loops_gradients_of_every_matrix_are_those_of_autograd_through_peft(family, model_type):
    model = adapted(family, model_type).train()
    matrices = lora.matrices_of(model)
    assert len(matrices) == 2 * N_BLOCKS * len(family.targets)
    stock = standard_loss(model, IDS, LABELS)
    expected = torch.autograd.grad(stock, list(matrices.values()))
    lean = lean_loss(model, IDS, *supervised(LABELS))
    found = torch.autograd.grad(lean, list(matrices.values()))
    assert lean.item() == pytest.approx(stock.item(), rel=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        assert_equal_within_rounding(ours, theirs)


@every_type
@torch.no_grad()
def test_targets_are_all_linear_modules_of_a_block_in_the_order_of_a_forward_pass(family, model_type):
    base = tiny(family, model_type)
    assert family_of(base.config.model_type) is family
    blocks = family.blocks_of(base)
    assert len(blocks) == N_BLOCKS
    for block in blocks:
        called: list[str] = []
        for name, module in block.named_modules():
            if is_conv1d(module) or isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda *_, name=name, called=called: called.append(name))
        base(input_ids=IDS, use_cache=False)
        assert tuple(called) == family.targets
    assert ordered_targets(reversed(family.targets)) == family.targets


@every_type
@torch.no_grad()
def test_weights_have_the_layout_and_the_sizes_that_the_family_says(family, model_type):
    base = tiny(family, model_type)
    shape = family.shape_of(base.config.to_dict())
    for name in family.targets:
        module = family.blocks_of(base)[0].get_submodule(name)
        sizes = {}

        def note(_, inputs, output, sizes=sizes):
            sizes["inputs"], sizes["outputs"] = inputs[0].shape[-1], output.shape[-1]

        module.register_forward_hook(note)
        base(input_ids=IDS, use_cache=False)
        inputs, outputs = sizes["inputs"], sizes["outputs"]
        assert tuple(module.weight.shape) == ((inputs, outputs) if family.is_transposed else (outputs, inputs))
        assert is_conv1d(module) == family.is_transposed
        if shape is not None:
            assert shape.modules[name] == (inputs, outputs)


@every_type
def test_without_the_dropouts_that_the_family_names_a_base_has_none(family, model_type):
    base = tiny(family, model_type).train()
    assert not [module for module in base.modules() if isinstance(module, torch.nn.Dropout) and module.p > 0]
    with torch.no_grad():
        first, second = (base(input_ids=IDS, use_cache=False).logits for _ in range(2))
    assert torch.equal(first, second)
