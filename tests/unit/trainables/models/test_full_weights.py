"""4-bit modules that keep their dequantized weight, against the same modules that do not."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from trainables.evaluation.held_out import eval_batches
from trainables.models import lora
from trainables.models.families.gpt2 import TARGETS
from trainables.models.full_weights import (
    MAX_ON_HOST_BYTES,
    dequantizing,
    drop_full_weights,
    full_bytes,
    have_room,
    keep_full_weights,
    keeping,
    kept_weights,
)
from trainables.models.lean import lean_modules
from trainables.models.lora_linear import KEPT, full_weight
from trainables.training.batches import Batch
from trainables.training.eager import EagerEngine
from trainables.training.step_graphs import StepGraphs
from trainables.trial import Trial
from trainables.values.errors import CaptureFailed, NoRoom
from trainables.worker_cache import WorkerCache

WORDS = torch.arange(80)[None]


@pytest.fixture
def base(workload):
    """4-bit, of its own; it keeps full weights, as it is small."""
    base = WorkerCache(workload, "cpu").base("nf4")
    assert kept_weights(base)
    return base


@torch.no_grad()
def test_every_4_bit_module_multiplies_by_its_kept_weight_as_it_does_by_its_own(base):
    def logits() -> torch.Tensor:
        return base(input_ids=WORDS, use_cache=False).logits

    kept = logits()
    weights = kept_weights(base)
    assert len(weights) == 4 * base.config.n_layer
    with dequantizing(base):
        own = logits()
        assert not kept_weights(base)
    torch.testing.assert_close(kept, own, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(), kept)
    for weight in weights:
        weight.zero_()
    assert not torch.allclose(logits(), own)
    with dequantizing(base):
        assert torch.equal(logits(), own), "its own are as they were"


def test_full_weights_are_as_many_bytes_as_is_said_and_none_are_kept_where_that_is_too_many(base, workload):
    n_bytes = sum(weight.nbytes for weight in kept_weights(base))
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
    assert not kept_weights(base)


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
    kept = kept_weights(base)
    with pytest.raises(ZeroDivisionError), dequantizing(base):
        _ = 1 / 0
    assert all(a is b for a, b in zip(kept_weights(base), kept, strict=True))
    assert len(kept) == sum(full_weight(module) is not None for module in base.modules())


def test_a_cost_key_is_measured_on_a_base_that_keeps_none(workload, small_config):
    """What is kept would be in the peak, as storages that the step touches."""
    config = replace(small_config(precision="nf4"), max_steps=1)
    peaks = []
    for keeps in (True, False):
        cache = WorkerCache(workload, "cpu")
        if not keeps:
            cache.give_up()
        assert bool(kept_weights(cache.base("nf4"))) == keeps
        trial = Trial(config, cache)
        trial.close()
        assert bool(kept_weights(cache.base("nf4"))) == keeps
        peaks.append((trial.cost.peak_memory_mib, trial.cost.breakdown))
    assert peaks[0] == peaks[1]


def test_a_worker_whose_memory_ran_out_gives_them_up_and_keeps_none_from_then_on(workload):
    cache = WorkerCache(workload, "cpu")
    cache.base("nf4")
    assert cache.give_up(), "a single base that keeps full weights is more than it needs"
    cache.base("nf4")
    assert not cache.forget()
    assert not kept_weights(cache.base("nf4"))


@torch.no_grad()
@pytest.mark.parametrize("is_lean", [True, False])
def test_weights_that_are_kept_while_an_adapter_is_attached_leave_the_adapter_where_it_is(base, small_config, is_lean):
    drop_full_weights(base)
    bare = base(input_ids=WORDS, use_cache=False).logits
    model = lora.attach(base, small_config(precision="nf4", targets=TARGETS), base_name="tiny").eval()
    for name, matrix in lora.matrices_of(model).items():
        if "lora_B" in name:
            matrix.fill_(0.1)

    def logits() -> torch.Tensor:
        with lean_modules(model) if is_lean else nullcontext():
            return model(input_ids=WORDS, use_cache=False).logits

    try:
        expected = logits()
        with keeping(base, ()) as held:
            torch.testing.assert_close(logits(), expected, rtol=1e-4, atol=1e-4)
            for weight in held:
                weight.zero_()
            assert not torch.allclose(logits(), expected)
    finally:
        lora.detach(model)
    assert not torch.allclose(bare, expected)


class NoMemory:
    """In place of a QuantState that there is no memory to dequantize by."""

    def __getattr__(self, name: str) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def test_where_memory_runs_out_half_way_none_are_kept(base):
    drop_full_weights(base)
    *_, last = (module for module in base.modules() if full_weight(module) is not None)
    last.weight.quant_state = NoMemory()
    with pytest.raises(torch.cuda.OutOfMemoryError):
        keep_full_weights(base)
    assert not kept_weights(base)
    assert not any("forward" in vars(module) for module in base.modules())


@torch.no_grad()
def test_a_base_that_keeps_none_multiplies_by_full_weights_while_readers_are_captured_made_once(base):
    own = kept_weights(base)
    with keeping(base, ()) as held:
        assert all(a is b for a, b in zip(held, own, strict=True))
    assert kept_weights(base)
    drop_full_weights(base)
    with keeping(base, ()) as first:
        assert kept_weights(base)
    assert not kept_weights(base)
    assert len(first) == len(own) == 4 * base.config.n_layer
    assert all(torch.equal(a, b) for a, b in zip(first, own, strict=True))
    with keeping(base, first) as second:
        assert all(a is b for a, b in zip(second, first, strict=True))


class Captures:
    """In place of a GraphCache on a GPU whose memory is too small for graphs beside full weights."""

    def __init__(self, failure: CaptureFailed) -> None:
        self.failure, self.seen = failure, []

    def __len__(self) -> int:
        return 0

    def clear(self) -> None:
        self.seen.append("cleared")

    def step_graphs(self, base, *_, **__) -> str:
        self.seen.append(bool(kept_weights(base)))
        if self.seen[-1]:
            raise self.failure
        return "captured"


def test_what_there_is_no_memory_to_capture_is_captured_once_more_without_full_weights(workload, small_config):
    cache, config = WorkerCache(workload, "cpu"), small_config(precision="nf4")
    captures = cache._graph_cache = Captures(NoRoom("OutOfMemoryError: CUDA out of memory"))
    base = cache.base("nf4")
    assert cache.graphs(config, []) == "captured"
    assert captures.seen == [True, "cleared", False], "graphs that read them are gone before they are"
    assert cache.base("nf4") is base, "it is not loaded again"
    cache.forget()
    cache.graphs(config, [])
    assert captures.seen[-1] is False, "none are kept from then on"


def test_what_cannot_be_captured_at_all_costs_no_full_weights(workload, small_config):
    cache, config = WorkerCache(workload, "cpu"), small_config(precision="nf4")
    captures = cache._graph_cache = Captures(CaptureFailed("this driver cannot"))
    with pytest.raises(CaptureFailed):
        cache.graphs(config, [])
    assert captures.seen == [True]
    assert kept_weights(cache.base("nf4"))


def test_a_trial_that_memory_runs_out_for_is_begun_once_more_on_a_base_that_keeps_none(workload, small_config):
    cache, kept = WorkerCache(workload, "cpu"), []

    def fill(module, inputs):
        kept.append(bool(kept_weights(cache.base("nf4"))))
        if len(kept) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(fill)
    try:
        trial = Trial(small_config(precision="nf4", max_steps=1), cache)
    finally:
        handle.remove()
    trial.close()
    assert not kept_weights(cache.base("nf4"))


@pytest.mark.parametrize("is_known", [True, False])
def test_a_step_is_captured_to_be_timed_only_where_its_cost_is_not_known(workload, small_config, is_known):
    """As far as a CPU shows it: what would be captured."""
    cache, config, seen = WorkerCache(workload, "cpu"), small_config(precision="nf4", max_steps=1), []
    known = Trial(config, cache)
    known.close()

    class Noting(WorkerCache):
        def graphs(self, config, shapes, timed=()):
            seen.append((len(list(shapes)), len(list(timed))))
            raise CaptureFailed("on a CPU nothing can be captured")

    on_gpu = Noting(workload, "cpu")
    trial = Trial(config, on_gpu, cost=known.cost)
    trial.close()
    on_gpu.device, trial.config = "cuda", replace(config, engine="graph")
    graphs, why = trial._graphs(known.cost if is_known else None)
    assert (graphs, why) == (None, "on a CPU nothing can be captured")
    ((n_shapes, n_timed),) = seen
    assert n_shapes > 0
    assert n_timed == (0 if is_known else 1)


@pytest.mark.parametrize("keeps", [True, False])
def test_a_timed_step_is_another_than_a_trials_where_full_weights_are_kept(base, small_config, splits, keeps):
    """Uncaptured here: which steps would be captured, and what the base keeps meanwhile."""
    config, seen = small_config(precision="nf4", targets=TARGETS), []
    if not keeps:
        drop_full_weights(base)
    few = eval_batches(base, splits["train"][:2])
    graphs = StepGraphs(base, config, eval_batches=few, compute_dtype="float32", pool=None, stream=None)
    models = set()

    def note(model, shapes, *, is_timed):
        models.add(model)
        seen.append((shapes, is_timed, bool(kept_weights(model))))

    graphs._capture = note
    graphs.capture(["trained"], timed=["full"])
    if keeps:
        assert seen == [(["trained"], False, True), (["full"], True, False)]
    else:
        assert seen == [(["trained", "full"], False, False)]
    assert len(models) == 1, "an adapter is attached once for both"
    assert bool(kept_weights(base)) == keeps
