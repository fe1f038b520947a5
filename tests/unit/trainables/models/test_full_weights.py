"""4-bit modules that keep their dequantized weight, against the same modules that do not."""

from dataclasses import replace

import pytest
import torch

from trainables.evaluation.held_out import eval_batches
from trainables.models import lora
from trainables.models.families.gpt2 import TARGETS
from trainables.models.full_weights import (
    MAX_ON_HOST_BYTES,
    dequantizing,
    full_bytes,
    have_room,
    keep_full_weights,
    keeps_full_weights,
)
from trainables.models.lora_linear import KEPT, full_weight
from trainables.training.batches import Batch
from trainables.training.eager import EagerEngine
from trainables.training.step_graphs import StepGraphs
from trainables.trial import Trial
from trainables.worker_cache import WorkerCache

WORDS = torch.arange(80)[None]


@pytest.fixture
def base(workload):
    """4-bit, of its own; it keeps full weights, as it is small."""
    base = WorkerCache(workload, "cpu").base("nf4")
    assert keeps_full_weights(base)
    return base


def kept_of(base) -> list[torch.Tensor]:
    return [vars(module)[KEPT] for module in base.modules() if KEPT in vars(module)]


def keep_none(base) -> None:
    for module in base.modules():
        if KEPT in vars(module):
            del module.forward, vars(module)[KEPT]


@torch.no_grad()
def test_every_4_bit_module_multiplies_by_its_kept_weight_as_it_does_by_its_own(base):
    def logits() -> torch.Tensor:
        return base(input_ids=WORDS, use_cache=False).logits

    kept = logits()
    weights = kept_of(base)
    assert len(weights) == 4 * base.config.n_layer
    with dequantizing(base):
        own = logits()
        assert not keeps_full_weights(base)
    torch.testing.assert_close(kept, own, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(), kept)
    for weight in weights:
        weight.zero_()
    assert not torch.allclose(logits(), own)
    with dequantizing(base):
        assert torch.equal(logits(), own), "its own are as they were"


def test_full_weights_are_as_many_bytes_as_is_said_and_none_are_kept_where_that_is_too_many(base, workload):
    n_bytes = sum(weight.nbytes for weight in kept_of(base))
    assert full_bytes(base) == n_bytes > 0
    with dequantizing(base):
        assert full_bytes(base) == n_bytes
    assert have_room(base)
    assert n_bytes <= MAX_ON_HOST_BYTES
    state = next(module.weight.quant_state for module in base.modules() if KEPT in vars(module))
    state.shape = torch.Size([MAX_ON_HOST_BYTES // state.dtype.itemsize, 2])
    assert not have_room(base)


def test_a_16_bit_base_keeps_none(workload):
    base = WorkerCache(workload, "cpu").base("16bit")
    assert full_bytes(base) == 0
    keep_full_weights(base)
    assert not keeps_full_weights(base)


@pytest.mark.parametrize("loop", ["standard", "lean"])
@pytest.mark.parametrize("targets", [TARGETS, TARGETS[:1]], ids=["all", "one"])
def test_steps_that_multiply_by_kept_weights_learn_what_others_learn_forward_and_backward(
    base, small_config, loop, targets
):
    config = small_config(precision="nf4", loop=loop, targets=targets, dropout=0.1, learning_rate=5e-3)
    batches = [Batch(words := (WORDS + 7 * i).remainder(500), words) for i in range(3)]

    def losses() -> torch.Tensor:
        model = lora.attach(base, config, base_name="tiny")
        try:
            return EagerEngine(model, config, compute_dtype="float32", device="cpu").run(batches)
        finally:
            lora.detach(model)

    kept = losses()
    with dequantizing(base):
        torch.testing.assert_close(kept, losses(), rtol=1e-5, atol=0)
    for module in base.modules():
        if KEPT in vars(module):
            del module.forward  # the forward pass is its own again
            vars(module)[KEPT].mul_(0.5)
    is_lean = loop == "lean"  # whose backward pass asks for the full weight
    assert torch.allclose(losses()[1:], kept[1:], rtol=1e-5) == (not is_lean)


def test_a_base_has_its_kept_weights_again_after_a_failure(base):
    kept = kept_of(base)
    with pytest.raises(ZeroDivisionError), dequantizing(base):
        _ = 1 / 0
    assert all(a is b for a, b in zip(kept_of(base), kept, strict=True))
    assert len(kept) == sum(full_weight(module) is not None for module in base.modules())


def test_a_cost_key_is_measured_on_a_base_that_keeps_none(workload, small_config):
    """What is kept would be in the peak, as storages that the step touches."""
    config = replace(small_config(precision="nf4"), max_steps=1)
    peaks = []
    for keeps in (True, False):
        cache = WorkerCache(workload, "cpu")
        if not keeps:
            cache.give_up()
        assert keeps_full_weights(cache.base("nf4")) == keeps
        trial = Trial(config, cache)
        trial.close()
        assert keeps_full_weights(cache.base("nf4")) == keeps
        peaks.append((trial.cost.peak_memory_mib, trial.cost.breakdown))
    assert peaks[0] == peaks[1]


def test_a_worker_whose_memory_ran_out_gives_them_up_and_keeps_none_from_then_on(workload):
    cache = WorkerCache(workload, "cpu")
    cache.base("nf4")
    assert cache.give_up(), "a single base that keeps full weights is more than it needs"
    cache.base("nf4")
    assert not cache.forget()
    assert not keeps_full_weights(cache.base("nf4"))


@pytest.mark.parametrize("keeps", [True, False])
def test_a_timed_step_is_another_than_a_trials_where_full_weights_are_kept(base, small_config, splits, keeps):
    """Uncaptured here: which steps would be captured, and what the base keeps meanwhile."""
    config, seen = small_config(precision="nf4", targets=TARGETS), []
    if not keeps:
        keep_none(base)
    few = eval_batches(base, splits["train"][:2])
    graphs = StepGraphs(base, config, eval_batches=few, compute_dtype="float32", pool=None, stream=None)
    graphs._capture = lambda shapes, warm, *, is_timed: seen.append((shapes, is_timed, keeps_full_weights(base)))
    graphs.capture(["trained"], timed=["full"])
    if keeps:
        assert seen == [(["trained"], False, True), (["full"], True, False)]
    else:
        assert seen == [(["trained", "full"], False, False)]
    assert keeps_full_weights(base) == keeps
