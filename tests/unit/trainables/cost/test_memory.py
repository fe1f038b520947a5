"""Peak memory on a CPU: known allocations, and PyTorch's own profiler on a training step."""

import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from trainables.cost.memory import LiveStorages, allocated_mib, peak_of
from trainables.models import lora
from trainables.training.eager import EagerEngine
from trainables.values.results import MIB


def mib(n: int) -> torch.Tensor:
    return torch.ones(n * MIB, dtype=torch.uint8)


def test_the_peak_is_the_most_that_lived_at_once():
    with LiveStorages() as storages:
        kept = mib(3)
        for _ in range(5):
            mib(4)
        assert storages.live_bytes == 3 * MIB
        other = mib(2)
    assert storages.live_bytes == kept.nbytes + other.nbytes == 5 * MIB
    assert storages.peak_bytes == 7 * MIB


def test_a_view_costs_nothing_and_holds_its_whole_storage():
    with LiveStorages() as storages:
        whole = mib(4)
        part = whole.view(4, MIB)[1][:10]
        del whole
        assert storages.live_bytes == storages.peak_bytes == 4 * MIB
        del part
        assert storages.live_bytes == 0


def test_a_storage_that_grows_in_place_counts_at_its_new_size():
    with LiveStorages() as storages:
        grown = mib(1)
        grown.resize_(3 * MIB)
        grown.add_(1)
        assert storages.live_bytes == 3 * MIB


def test_what_existed_before_counts_from_its_first_use():
    resident = mib(5)
    with LiveStorages() as storages:
        assert storages.live_bytes == 0
        resident.sum()
        assert storages.live_bytes == 5 * MIB
        storages.reset_peak()
        resident + 1
    assert storages.peak_bytes == 10 * MIB


def test_peak_of_counts_residents_and_not_the_first_pass():
    resident = mib(2)
    sizes = iter((9, 3))
    peak = peak_of(lambda: (resident.sum(), mib(next(sizes))), "cpu")
    assert peak.allocated_mib == peak.reserved_mib == pytest.approx(5, abs=1e-4)


def test_work_that_fails_leaves_no_mode_behind():
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        peak_of(fail, "cpu")
    with LiveStorages() as storages:
        mib(1)
    assert storages.peak_bytes == MIB


def profiled_peak_bytes(work) -> int:
    """Highest sum of allocations less frees while `work` runs, from PyTorch's profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_a_training_steps_peak_is_that_of_the_profiler(cache, small_config, precision):
    """The profiler sees what a step allocates; residents are what both see before it."""
    config = small_config(precision=precision, dropout=0.05)
    model = lora.attach(cache.base(precision), config, base_name="tiny")
    ids = torch.randint(1024, (4, 128), generator=torch.Generator().manual_seed(0))
    try:
        engine = EagerEngine(model, config, compute_dtype="float32", device="cpu")
        for _ in range(2):
            engine.step(ids, ids)
        gc.collect()
        with LiveStorages() as storages:
            engine.step(ids, ids)
            resident = storages.live_bytes
            storages.reset_peak()
            engine.step(ids, ids)
        profiled = profiled_peak_bytes(lambda: engine.step(ids, ids))
    finally:
        lora.detach(model)
    assert storages.peak_bytes - resident == pytest.approx(profiled, rel=0.01)


def test_equal_work_has_an_equal_peak_and_more_work_a_higher_one(cache, small_config):
    peaks = []
    for n_tokens in (64, 64, 128):
        model = lora.attach(cache.base("16bit"), small_config(), base_name="tiny")
        engine = EagerEngine(model, small_config(), compute_dtype="float32", device="cpu")
        ids = torch.zeros(2, n_tokens, dtype=torch.int64)
        engine.step(ids, ids)
        peaks.append(peak_of(lambda engine=engine, ids=ids: engine.step(ids, ids), "cpu").allocated_mib)
        lora.detach(model)
    assert peaks[0] == peaks[1] < peaks[2]


def test_allocated_memory_on_a_cpu_counts_each_living_storage_once():
    gc.collect()
    before = allocated_mib("cpu")
    kept = mib(3)
    view = kept[:10]
    assert allocated_mib("cpu") - before == pytest.approx(3, abs=1e-3)
    del kept
    assert allocated_mib("cpu") - before == pytest.approx(3, abs=1e-3)
    del view
    assert allocated_mib("cpu") == pytest.approx(before, abs=1e-3)
    weight = torch.nn.Parameter(mib(2), requires_grad=False)  # of a class of its own
    assert allocated_mib("cpu") - before == pytest.approx(2, abs=1e-3)
    del weight
