"""Norm, rotary and gate as operations of their own against transformers' blocks and PyTorch's autograd."""

from importlib import import_module

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from trainables.models.block_ops import Gated, RMSNorm, Rotary
from trainables.models.families.fusible import FUSIBLE
from trainables.models.fused_blocks import fused_blocks
from trainables.models.lean import lean_modules

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,  # SmolLM3 leaves the rotary out of every fourth
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}


def tiny(model_type: str, **values):
    """A model of random weights; its norms' weights are drawn too, as 1 or 0 would hide mistakes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SIZES, **values}))
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.data.normal_(0.5, 0.3)
    return model.requires_grad_(False)


def logits_and_gradient(model) -> tuple[torch.Tensor, torch.Tensor]:
    """Of random embedded tokens; the gradient is to them."""
    embedded = torch.randn(2, 24, 48, generator=torch.Generator().manual_seed(1), requires_grad=True)
    logits = model(inputs_embeds=embedded, use_cache=False).logits
    (gradient,) = torch.autograd.grad(logits.square().mean(), embedded)
    return logits.detach(), gradient


@pytest.fixture(scope="module", params=FUSIBLE)
def model(request):
    return tiny(request.param)


def test_a_model_with_fused_blocks_has_the_logits_and_gradients_of_transformers(model):
    stock, expected = logits_and_gradient(model)
    with fused_blocks(model):
        logits, gradient = logits_and_gradient(model)
    torch.testing.assert_close(logits, stock, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_every_norm_and_gate_and_the_rotary_are_exchanged_and_put_back_even_after_an_error(model):
    fusible = FUSIBLE[model.config.model_type]
    modeling = import_module(fusible.modeling)
    rotary = modeling.apply_rotary_pos_emb
    parts = [m for m in model.modules() if type(m).__name__.endswith(("RMSNorm", "MLP"))]

    def fail_inside() -> None:
        with lean_modules(model), lean_modules(model):  # nested: the outer one decides
            assert all("forward" in vars(part) for part in parts)
            assert modeling.apply_rotary_pos_emb is not rotary
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert len(parts) >= 2 * 4 + 1 + 4
    assert not any("forward" in vars(module) for module in model.modules())
    assert modeling.apply_rotary_pos_emb is rotary


def test_what_is_kept_for_the_backward_pass_is_less_than_what_transformers_keeps(model):
    def kept_bytes() -> int:
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.update({t.data_ptr(): t.nbytes}) or t, lambda t: t
        ):
            embedded = torch.zeros(2, 24, 48, requires_grad=True)
            kept = model(inputs_embeds=embedded, use_cache=False).logits
        del kept
        return sum(sizes.values())

    stock = kept_bytes()
    with fused_blocks(model):
        assert kept_bytes() < stock


def test_an_activation_that_is_not_known_a_trainable_norm_and_float64_stay_transformers_own():
    relu = tiny("llama", hidden_act="relu")
    with fused_blocks(relu):
        assert not any("forward" in vars(m) for m in relu.modules() if type(m).__name__ == "LlamaMLP")
    trainable = tiny("llama").requires_grad_(True)
    with fused_blocks(trainable):
        assert not any("forward" in vars(m) for m in trainable.modules() if type(m).__name__ == "LlamaRMSNorm")
    wide = tiny("llama").double()
    with fused_blocks(wide):
        assert not any("forward" in vars(module) for module in wide.modules())


def test_a_family_without_fusible_blocks_runs_as_it_is(cache):
    base = cache.base("16bit")
    with fused_blocks(base):
        assert not any("forward" in vars(module) for module in base.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_the_norm_has_the_values_of_the_formula_and_the_gradient_of_autograd(dtype, offset):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 7, 32, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(32, generator=generator).to(dtype)
    upstream = torch.randn(3, 7, 32, generator=generator).to(dtype)
    exact_x = x.detach().double().requires_grad_()
    exact = (offset + weight.double()) * exact_x / (exact_x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    (expected,) = torch.autograd.grad(exact, exact_x, upstream.double())
    y = RMSNorm.apply(x, weight, 1e-5, offset)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), exact, rtol=rounding, atol=rounding)
    torch.testing.assert_close(gradient.double(), expected, rtol=rounding, atol=4 * rounding)


@pytest.mark.parametrize(
    ("activation", "plain"), [("silu", F.silu), ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"))]
)
def test_the_gate_has_the_values_and_gradients_of_autograd(activation, plain):
    generator = torch.Generator().manual_seed(0)
    gate, up = (torch.randn(5, 40, generator=generator).mul_(4).requires_grad_() for _ in range(2))
    upstream = torch.randn(5, 40, generator=generator)
    ours, theirs = Gated.apply(gate, up, activation), plain(gate) * up
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    found, expected = (torch.autograd.grad(y, (gate, up), upstream) for y in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_rotary_is_a_turn_whose_gradient_turns_back():
    generator = torch.Generator().manual_seed(0)
    angles = torch.rand(1, 6, 4, generator=generator).repeat(1, 1, 2)
    q, k = (torch.randn(2, heads, 6, 8, generator=generator, requires_grad=True) for heads in (4, 2))
    outs = Rotary.apply(q, k, angles.cos(), angles.sin())
    for before, after in zip((q, k), outs, strict=True):
        pairs, turned = (torch.complex(*t.chunk(2, dim=-1)) for t in (before, after))
        torch.testing.assert_close(turned, pairs * torch.exp(1j * angles[:, None, :, :4]))
    for before, back in zip((q, k), torch.autograd.grad(outs, (q, k), outs), strict=True):
        torch.testing.assert_close(back, before)  # a turn's transpose is its inverse
