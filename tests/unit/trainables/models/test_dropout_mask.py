"""The counter-based dropout: the bits by a NumPy of its own, their statistics, and what must change none of them."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from scipy.stats import binom, chi2
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from trainables.data.tokens import IGNORE
from trainables.models import lora
from trainables.models.chunked_loss import supervised
from trainables.models.dropout_mask import DropoutMasks, Mask, MaskedDropout, as_int32, dropped, mixed, token_keys
from trainables.models.families.gpt2 import TARGETS
from trainables.models.lean import adapted_layers, lean_loss, lean_modules
from trainables.models.peft_forward import follow_protocol
from trainables.training.engine import standard_loss
from trainables.values.config import TrialConfig

LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
P = 0.3
UNSIGNED = st.integers(0, 2**32 - 1)


def lowbias32(x: np.ndarray) -> np.ndarray:
    """As its author prints it, in unsigned arithmetic."""
    x = np.asarray(x, dtype=np.uint64)
    x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x7FEB352D)) & np.uint64(0xFFFFFFFF)
    x = ((x ^ (x >> np.uint64(15))) * np.uint64(0x846CA68B)) & np.uint64(0xFFFFFFFF)
    return x ^ (x >> np.uint64(16))


def kept(*, seed=0, step=0, module=0, rows=1, length=64, channels=64, p=P) -> np.ndarray:
    """(rows * length, channels)."""
    numbers = [torch.tensor(as_int32(number), dtype=torch.int32) for number in (seed, step)]
    places = torch.arange(rows, dtype=torch.int32)[:, None], torch.arange(length, dtype=torch.int32)
    return Mask(token_keys(*numbers, *places), module, p).keep(channels).numpy()


@given(st.lists(UNSIGNED, min_size=1, max_size=20))
def test_the_mixer_is_lowbias32_and_gives_no_two_numbers_one_result(numbers):
    found = mixed(torch.tensor([as_int32(number) for number in numbers], dtype=torch.int32)).numpy().view(np.uint32)
    assert found.tolist() == lowbias32(np.array(numbers)).tolist()
    assert len(set(found.tolist())) == len(set(numbers))


@given(UNSIGNED, st.integers(0, 10**6), st.integers(0, 500), st.sampled_from([0.0, 0.05, 0.5, 0.9]))
def test_the_mask_is_that_of_the_definition_in_unsigned_numbers(seed, step, module, p):
    first = 0x3C6EF372
    key = lowbias32(first ^ seed)
    key = lowbias32(key ^ np.uint64(step))
    key = lowbias32(key ^ np.arange(3, dtype=np.uint64)[:, None])  # rows
    key = lowbias32(key ^ np.arange(5, dtype=np.uint64)).flatten()  # positions
    of_channels = lowbias32(first ^ np.arange(7, dtype=np.uint64))
    hashed = lowbias32((lowbias32(key ^ np.uint64(module))[:, None] + of_channels) & np.uint64(0xFFFFFFFF))
    signed = (hashed ^ (hashed >> np.uint64(16))).astype(np.uint32).view(np.int32)  # before the mixer's last shift
    expected = signed >= round(p * 2**32) - 2**31
    assert np.array_equal(kept(seed=seed, step=step, module=module, rows=3, length=5, channels=7, p=p), expected)


@pytest.mark.parametrize("p", [0.0, 0.01, 0.05, 0.5, 0.95])
def test_the_share_that_is_dropped_is_p(p):
    mask = kept(seed=11, rows=4, length=256, channels=1024, p=p)
    deviation = np.sqrt(p * (1 - p) / mask.size)
    assert abs((~mask).mean() - p) <= 4 * deviation


@pytest.mark.parametrize("axis", [0, 1], ids=["of a channel", "of a token"])
def test_the_counts_of_what_is_kept_are_binomial(axis):
    mask = kept(seed=5, rows=8, length=128, channels=1024)
    counts = mask.sum(axis=axis)
    n = mask.shape[axis]
    edges = binom.ppf(np.linspace(0, 1, 11), n, 1 - P)
    edges[0] = -1
    expected = np.diff(binom.cdf(edges, n, 1 - P)) * len(counts)
    observed = np.histogram(counts, bins=edges + 0.5)[0]
    assert chi2.sf(((observed - expected) ** 2 / expected).sum(), df=len(expected) - 1) > 1e-3


def independence(one: np.ndarray, other: np.ndarray) -> float:
    """Probability of a table of two masks' bits as uneven as this one, if they were independent with rate P."""
    pair = 2 * one.astype(int) + other
    expected = np.array([P * P, P * (1 - P), (1 - P) * P, (1 - P) ** 2]) * pair.size
    observed = np.bincount(pair.flatten(), minlength=4)
    return chi2.sf(((observed - expected) ** 2 / expected).sum(), df=3)


SIZES = {"rows": 4, "length": 64, "channels": 512}


@pytest.mark.parametrize("name", ["seed", "step", "module"])
def test_masks_of_different_seeds_steps_and_modules_are_independent(name):
    apart = (1, 2, 3, 16, 256, 65536, 2**31)
    first = kept(**SIZES)
    assert min(independence(first, kept(**SIZES, **{name: k})) for k in apart) > 1e-3 / len(apart)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["rows", "positions", "channels"])
def test_masks_of_different_rows_positions_and_channels_are_independent(axis):
    mask = np.moveaxis(kept(seed=3, **SIZES).reshape(4, 64, 512), axis, 0)
    apart = [k for k in (1, 2, 3, 8, 16, 32, 256) if k < len(mask)]
    assert min(independence(mask[:-k], mask[k:]) for k in apart) > 1e-3 / len(apart)


@pytest.mark.parametrize("names", [("seed", "step"), ("step", "module"), ("seed", "module")])
def test_counters_cannot_be_exchanged(names):
    one, other = ({names[0]: a, names[1]: b} for a, b in ((1, 2), (2, 1)))
    assert independence(kept(**SIZES, **one), kept(**SIZES, **other)) > 1e-3


def test_what_is_kept_is_scaled_so_that_the_mean_stays():
    mask = Mask(torch.arange(64, dtype=torch.int32), 0, 0.25)
    x = torch.ones(64, 1024)
    out = dropped(x, mask)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert out.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(out != 0, mask.keep(1024))
    assert dropped(x, None) is x


def test_outside_a_step_a_model_in_training_mode_says_so_and_one_in_evaluation_is_the_identity():
    module = MaskedDropout(0.5, 0, DropoutMasks(0, "cpu"))
    x = torch.ones(1, 2, 3)
    with pytest.raises(RuntimeError, match=r"outside DropoutMasks\.step"):
        module(x)
    assert module.eval()(x) is x


def test_an_input_that_has_not_the_steps_tokens_is_refused():
    masks = DropoutMasks(0, "cpu")
    with masks.step(2, 3), pytest.raises(RuntimeError, match="6 tokens in this step, a module's input 8"):
        MaskedDropout(0.5, 0, masks)(torch.ones(2, 4, 5))


def test_the_gradient_goes_where_the_values_went():
    masks = DropoutMasks(0, "cpu")
    x = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with masks.step(2, 8):
        y = MaskedDropout(0.5, 3, masks)(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * x, y)


# --- whole models: what changes no mask


@pytest.fixture(params=["gpt2", "llama"])
def model(request, cache, small_config) -> Iterator[PeftModel]:
    """A model with an adapter on all linear modules that is no longer without effect, in training mode."""
    if request.param == "gpt2":
        base, config = cache.base("16bit"), small_config(targets=TARGETS, dropout=P)
    else:
        base, config = tiny_llama(), small_config(targets=LLAMA_TARGETS, dropout=P)
    model = with_effect(base, config)
    yield model
    lora.detach(model)


def tiny_llama() -> LlamaForCausalLM:
    shape = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1024,
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(shape).requires_grad_(False)


def with_effect(base, config: TrialConfig) -> PeftModel:
    model = lora.attach(base, config, base_name="tiny")
    for number, (name, weight) in enumerate(model.named_parameters()):
        if "lora_B" in name:
            weight.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(number))
    return model.train()


def drawn_batch(n_rows: int = 3, length: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 1024, (n_rows, length), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :5] = IGNORE
    return ids, labels


def loss_and_gradients(model, ids, labels, loop, *, rows=None, masks=None) -> list[torch.Tensor]:
    """Of one step."""
    masks = masks or DropoutMasks(9, "cpu")
    follow_protocol(model, masks)
    weights = [p for p in model.parameters() if p.requires_grad]
    with masks.step(*ids.shape, rows=rows), lean_modules(model):
        loss = lean_loss(model, ids, *supervised(labels)) if loop == "lean" else standard_loss(model, ids, labels)
        return [loss, *torch.autograd.grad(loss, weights)]


def assert_same(found, expected) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loop", ["standard", "lean"])
def test_a_batch_padded_to_another_length_has_the_same_masks(model, loop):
    ids, labels = drawn_batch()
    expected = loss_and_gradients(model, ids, labels, loop)
    wider = F.pad(ids, (0, 12), value=7), F.pad(labels, (0, 12), value=IGNORE)
    assert_same(loss_and_gradients(model, *wider, loop), expected)


@pytest.mark.parametrize("loop", ["standard", "lean"])
def test_rows_in_other_places_of_the_batch_keep_the_masks_of_their_numbers(model, loop):
    ids, labels = drawn_batch()
    expected = loss_and_gradients(model, ids, labels, loop)
    order = torch.tensor([2, 0, 1])
    found = loss_and_gradients(model, ids[order], labels[order], loop, rows=order.int())
    assert_same(found, expected)
    others = loss_and_gradients(model, ids[order], labels[order], loop)
    assert abs(others[0] - expected[0]) > 1e-4


@pytest.mark.parametrize("loop", ["standard", "lean"])
def test_gradient_checkpointing_changes_nothing(model, loop):
    """The blocks' forward passes run again in the backward pass."""
    ids, labels = drawn_batch()
    expected = loss_and_gradients(model, ids, labels, loop)
    core = model.get_base_model()
    calls = []
    for layer in adapted_layers(model):
        layer.get_base_layer().register_forward_hook(lambda *_: calls.append(1))
    core.gradient_checkpointing_enable({"use_reentrant": False})
    core.enable_input_require_grads()
    try:
        found = loss_and_gradients(model, ids, labels, loop)
    finally:
        core.gradient_checkpointing_disable()
        core.disable_input_require_grads()
        for layer in adapted_layers(model):
            layer.get_base_layer()._forward_hooks.clear()
    assert len(calls) == 2 * len(adapted_layers(model))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_adapter_draws_its_mask_again(model, reentrant):
    masks = DropoutMasks(1, "cpu")
    follow_protocol(model, masks)
    layer = adapted_layers(model)[1]
    x = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = [x, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    with masks.step(2, 6), lean_modules(model):
        expected = torch.autograd.grad(layer(x).square().sum(), weights)
        again = checkpoint(layer, x, use_reentrant=reentrant, preserve_rng_state=False)
        again.square().sum().backward()
    assert all(torch.equal(weight.grad, gradient) for weight, gradient in zip(weights, expected, strict=True))


def test_a_trial_that_goes_on_in_the_middle_draws_the_masks_of_one_that_never_stopped():
    straight, resumed = DropoutMasks(3, "cpu"), DropoutMasks(3, "cpu")

    def drawn(masks: DropoutMasks) -> list[int]:
        with masks.step(2, 4):
            return masks.of(0, P).keys.tolist()

    expected = [drawn(straight) for _ in range(4)]
    resumed.n_steps.fill_(2)
    assert [drawn(resumed) for _ in range(2)] == expected[2:]
    assert len({tuple(keys) for keys in expected}) == 4
    resumed.restart(3)
    assert drawn(resumed) == expected[0]
    resumed.restart(2**32 - 1)
    assert drawn(resumed) != expected[0]


# --- the lean forward against peft's own, both with the same masks


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_the_lean_forward_has_the_values_and_gradients_of_pefts_own_under_the_same_masks(model, dtype, rtol):
    ids, _ = drawn_batch()
    model.to(dtype)
    masks = DropoutMasks(2, "cpu")
    follow_protocol(model, masks)
    weights = [p for p in model.parameters() if p.requires_grad]

    def values_and_gradients() -> list[torch.Tensor]:
        masks.restart(2)
        with masks.step(*ids.shape):
            logits = model(input_ids=ids, use_cache=False).logits
            return [logits, *torch.autograd.grad(logits.square().mean(), weights)]

    try:
        stock = values_and_gradients()
        with lean_modules(model):
            lean = values_and_gradients()
        for ours, theirs in zip(lean, stock, strict=True):
            scale = theirs.abs().max().item()
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol * scale)
            assert scale > 0
    finally:
        model.to(torch.float32)


def test_both_loops_have_one_loss_and_one_gradient_with_dropout_on(model):
    ids, labels = drawn_batch()
    assert_same(loss_and_gradients(model, ids, labels, "lean"), loss_and_gradients(model, ids, labels, "standard"))
