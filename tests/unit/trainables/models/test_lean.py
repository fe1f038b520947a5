"""The lean loop's own operations against plain ones: PyTorch's autograd, peft's layers, definitions."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from trainables.data.tokens import IGNORE
from trainables.models import lora
from trainables.models.chunked_loss import ALIGNMENT, ChunkedLoss, aligned_logits, supervised
from trainables.models.dropout_mask import DropoutMasks, Mask
from trainables.models.families.gpt2 import TARGETS
from trainables.models.lean import (
    adapted_forward,
    adapted_layers,
    is_plain_lora,
    lean_loss,
    lean_modules,
)
from trainables.models.lora_linear import LoraLinear, read_through, rounded_matrices
from trainables.models.peft_forward import follow_protocol
from trainables.training.engine import standard_loss

LABELS = st.integers(1, 4).flatmap(
    lambda n_rows: st.integers(1, 9).flatmap(
        lambda length: st.lists(
            st.lists(st.sampled_from([IGNORE, 0, 1, 7]), min_size=length, max_size=length),
            min_size=n_rows,
            max_size=n_rows,
        )
    )
)


@given(LABELS, st.sampled_from([1, 2, 5, 256]))
def test_supervised_positions_are_those_before_each_label(labels, multiple):
    length = len(labels[0])
    expected = [
        (row * length + column - 1, label)
        for row, of_row in enumerate(labels)
        for column, label in enumerate(of_row)
        if column and label != IGNORE
    ]
    positions, targets = supervised(torch.tensor(labels), multiple=multiple)
    found = list(zip(positions.tolist(), targets.tolist(), strict=True))
    assert found[: len(expected)] == expected
    assert found[len(expected) :] == [(0, IGNORE)] * (-len(expected) % multiple)


@given(st.integers(1, 70), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_aligned_logits_are_the_plain_product_and_certainly_not_a_word_beyond_it(n_words, n, seed):
    generator = torch.Generator().manual_seed(seed)
    states, head = torch.randn(n, 6, generator=generator), torch.randn(n_words, 6, generator=generator)
    logits = aligned_logits(states, head)
    assert logits.shape[1] % ALIGNMENT == 0
    assert 0 <= logits.shape[1] - n_words < ALIGNMENT
    torch.testing.assert_close(logits[:, :n_words], states @ head.T)
    assert (logits[:, n_words:] == -torch.inf).all()


@pytest.mark.parametrize("n_tokens", [1, 255, 257])
@pytest.mark.parametrize("n_words", [48, 50])
def test_padding_takes_no_part_in_the_chunked_loss(n_tokens, n_words):
    generator = torch.Generator().manual_seed(n_tokens)
    states = torch.randn(n_tokens, 16, generator=generator)
    head = torch.randn(n_words, 16, generator=generator)
    targets = torch.randint(n_words, (n_tokens,), generator=generator)

    def loss_and_gradient(n_padding):
        padded = F.pad(states, (0, 0, 0, n_padding), value=3.0).requires_grad_()
        loss = ChunkedLoss.apply(padded, head, F.pad(targets, (0, n_padding), value=IGNORE))
        return loss.detach(), torch.autograd.grad(loss, padded)[0]

    (bare, of_bare), (loss, gradient) = loss_and_gradient(0), loss_and_gradient(300)
    torch.testing.assert_close(loss, bare, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient[:n_tokens], of_bare, rtol=1e-5, atol=1e-8)
    assert not gradient[n_tokens:].any()


@pytest.fixture(params=["16bit", "nf4"])
def adapted(request, cache, small_config):
    """A model whose adapter on all targets is no longer without effect, and its base's precision."""
    config = small_config(precision=request.param, targets=TARGETS, dropout=0.0)
    model = lora.attach(cache.base(request.param), config, base_name="tiny")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))
    yield model
    lora.detach(model)


def drawn_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 1024, (3, 40), generator=generator)
    labels = ids.clone()
    labels[:, :10] = IGNORE
    labels[1, 30:] = IGNORE
    return ids, labels


def test_the_lean_loops_loss_and_gradients_are_those_of_pefts_layers_and_full_logits(adapted):
    ids, labels = drawn_batch()
    weights = [p for p in adapted.parameters() if p.requires_grad]
    stock = standard_loss(adapted.train(), ids, labels)
    expected = torch.autograd.grad(stock, weights)
    lean = lean_loss(adapted, ids, *supervised(labels, multiple=256))
    found = torch.autograd.grad(lean, weights)
    assert lean.item() == pytest.approx(stock.item(), abs=2e-6)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert all(gradient.any() for gradient in expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scaling", [1.0, 2.0, torch.tensor(0.25)])
def test_what_is_only_read_is_as_near_the_formula_as_what_is_trained(dtype, scaling):
    generator = torch.Generator().manual_seed(0)
    base = torch.nn.Linear(96, 64).to(dtype)
    x = torch.randn(3, 50, 96, generator=generator).to(dtype)
    a, b = torch.randn(8, 96, generator=generator) / 10, torch.randn(64, 8, generator=generator) / 10
    exact = base.double()(x.double()) + scaling * x.double() @ a.double().T @ b.double().T
    base.to(dtype)
    (matrices,) = rounded_matrices([a], [b], scaling, dtype)
    found = read_through(x, matrices, base), LoraLinear.apply(x, a, b, matrices, base, scaling, None)
    assert [y.dtype for y in found] == [dtype, dtype]
    error, of_training = ((y.double() - exact).square().mean().sqrt() for y in found)
    assert 0 < error < 1.5 * of_training


def test_inside_lean_modules_a_disabled_adapter_stays_disabled(adapted):
    ids, _ = drawn_batch()
    with adapted.disable_adapter(), torch.no_grad():
        stock = adapted(input_ids=ids).logits
        with lean_modules(adapted):
            lean = adapted(input_ids=ids).logits
    with torch.no_grad():
        enabled = adapted(input_ids=ids).logits
    torch.testing.assert_close(lean, stock, rtol=1e-4, atol=1e-4)
    assert (enabled - stock).abs().max() > 1e-2


def test_lean_modules_leave_the_model_as_it_was_even_after_an_error(adapted):
    layers, blocks = adapted_layers(adapted), adapted.get_base_model().transformer.h
    before = [block.mlp.act for block in blocks]

    def fail_inside() -> None:
        with lean_modules(adapted):
            assert all("forward" in layer.__dict__ for layer in layers)
            assert all(isinstance(block.mlp.act, torch.nn.GELU) for block in blocks)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert not any("forward" in layer.__dict__ for layer in layers)
    assert [block.mlp.act for block in blocks] == before
    assert len(layers) == 2 * len(TARGETS)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_lora_linear_has_the_values_and_gradients_of_its_formula(adapted, dropout):
    """Against autograd over y = W x + scaling * B A dropout(x), with the same mask."""
    layer = adapted_layers(adapted)[2]  # mlp.c_fc of the first block
    base, a, b = layer.get_base_layer(), layer.lora_A["default"].weight, layer.lora_B["default"].weight
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, 64, generator=generator).requires_grad_()
    upstream = torch.randn(2, 5, 256, generator=generator)
    mask = Mask(torch.arange(10, dtype=torch.int32), 3, dropout)
    (matrices,) = rounded_matrices([a], [b], 0.7, torch.float32)
    y = LoraLinear.apply(x, a, b, matrices, base, 0.7, mask if dropout else None)
    found = torch.autograd.grad(y, (x, a, b), upstream)
    keep = mask.keep(64).view(2, 5, 64)
    expected_y = base(x) + 0.7 * (x * keep / (1 - dropout)) @ a.T @ b.T
    expected = torch.autograd.grad(expected_y, (x, a, b), upstream)
    torch.testing.assert_close(y, expected_y, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert keep.all() == (dropout == 0)


def test_dropout_is_drawn_anew_in_training_and_never_in_evaluation(cache, small_config):
    model = lora.attach(cache.base("16bit"), small_config(dropout=0.5, targets=TARGETS), base_name="tiny")
    masks = DropoutMasks(0, "cpu")
    follow_protocol(model, masks)
    ids, labels = drawn_batch()
    losses = {True: set(), False: set()}
    try:
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.fill_(0.05)
        for training in (True, False, True, False):
            with torch.no_grad(), masks.step(*ids.shape):
                losses[training].add(lean_loss(model.train(training), ids, *supervised(labels)).item())
    finally:
        lora.detach(model)
    assert (len(losses[True]), len(losses[False])) == (2, 1)


class Square(torch.nn.Module):
    """A frozen linear module as wide as it is high, where the wrong layout gives a wrong gradient without an error."""

    def __init__(self, make) -> None:
        super().__init__()
        self.proj = make()
        self.config = SimpleNamespace(model_type="none")

    def forward(self, x):
        return self.proj(x)


def square_layer(make, **lora):
    """A square module of 16 with an adapter whose B is not zero, and peft's layer of it."""
    torch.manual_seed(0)
    model = get_peft_model(Square(make), LoraConfig(r=4, target_modules=["proj"], **lora))
    (layer,) = adapted_layers(model)
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    return model, layer


def gradients_of(model, layer, forward):
    """Output of a forward pass, and the gradients to its input and to the adapter's matrices."""
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = [p for p in model.parameters() if p.requires_grad]
    out = forward(x)
    return [out, *torch.autograd.grad((out * torch.arange(16.0)).sum(), [x, *weights])]


@pytest.mark.parametrize("make", [lambda: torch.nn.Linear(16, 16), lambda: Conv1D(16, 16)], ids=["Linear", "Conv1D"])
def test_a_square_modules_gradients_are_those_of_pefts_own_forward_in_either_layout(make):
    model, layer = square_layer(make, fan_in_fan_out=isinstance(make(), Conv1D))
    assert is_plain_lora(layer)
    stock = gradients_of(model, layer, layer.forward)
    lean = gradients_of(model, layer, lambda x: adapted_forward(layer, x))
    for ours, theirs in zip(lean, stock, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"lora_bias": True}], ids=["DoRA", "a bias"])
def test_what_is_no_plain_lora_goes_through_pefts_own_forward(lora):
    _, layer = square_layer(lambda: torch.nn.Linear(16, 16), **lora)
    assert not is_plain_lora(layer)
    with _lean_around(layer):
        assert "forward" not in vars(layer)


@contextmanager
def _lean_around(layer):
    """What lean_modules does to a model that has only this layer."""
    owner = torch.nn.Module()
    owner.layer = layer
    owner.config = SimpleNamespace(model_type="none")
    with lean_modules(owner):
        yield
