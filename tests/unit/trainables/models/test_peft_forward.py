"""peft's own forward under the measurement protocol against torch.autocast, which a stock trainer runs it in."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from trainables.models.dropout_mask import DropoutMasks, MaskedDropout
from trainables.models.lean import adapted_layers, lean_modules
from trainables.models.peft_forward import AdapterProduct, follow_protocol


def peft_model(dtype: torch.dtype, dropout: float = 0.0):
    """A GPT-2 of one layer whose adapter has an effect, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64, n_positions=32, initializer_range=0.2)
        base = GPT2LMHeadModel(shape).to(dtype)
        config = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, lora_dropout=dropout)
        model = get_peft_model(base, config).train()
        for name, weight in model.named_parameters():
            if "lora" in name:
                nn.init.normal_(weight.data)
    return model


def output_and_gradients(layer, dtype: torch.dtype) -> list[torch.Tensor]:
    x = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    y = layer(x)
    assert y.dtype == dtype
    gradients = torch.autograd.grad((y * torch.arange(96)).sum(), [x, a, b])
    assert [gradient.dtype for gradient in gradients] == [dtype, torch.float32, torch.float32]
    return [y, *gradients]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_adapters_products_are_those_of_autocast_to_the_bit(dtype):
    (layer,) = adapted_layers(peft_model(dtype))
    with torch.autocast("cpu", dtype=dtype):
        expected = output_and_gradients(layer, dtype)
    model = peft_model(dtype)
    follow_protocol(model, DropoutMasks(0, "cpu"))
    (ours,) = adapted_layers(model)
    assert isinstance(ours.lora_A["default"], AdapterProduct)
    for found, theirs in zip(output_and_gradients(ours, dtype), expected, strict=True):
        assert torch.equal(found, theirs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_the_lean_forward_differs_from_it_by_rounding(dtype, tolerance):
    model = peft_model(dtype, dropout=0.25)
    (layer,) = adapted_layers(model)
    masks = DropoutMasks(0, "cpu")
    follow_protocol(model, masks)
    with masks.step(2, 8):
        stock = output_and_gradients(layer, dtype)
        with lean_modules(model):
            lean = output_and_gradients(layer, dtype)
    for ours, theirs in zip(lean, stock, strict=True):
        assert (ours - theirs).float().norm() < tolerance * theirs.float().norm()


def test_in_float32_pefts_own_products_stay():
    model = peft_model(torch.float32, dropout=0.25)
    follow_protocol(model, DropoutMasks(0, "cpu"))
    (layer,) = adapted_layers(model)
    assert isinstance(layer.lora_A["default"], nn.Linear)
    assert isinstance(layer.lora_dropout["default"], MaskedDropout)


def test_following_it_twice_leaves_the_matrices_and_takes_the_later_masks():
    model = peft_model(torch.bfloat16, dropout=0.25)
    names = [name for name, _ in model.named_parameters()]
    weights = list(model.parameters())
    later = DropoutMasks(1, "cpu")
    for masks in (DropoutMasks(0, "cpu"), later):
        follow_protocol(model, masks)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))
    with later.step(2, 8):
        model(input_ids=torch.zeros(2, 8, dtype=torch.int64))
