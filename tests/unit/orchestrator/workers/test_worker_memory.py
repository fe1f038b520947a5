"""A comparison or evaluation for which memory runs out is done once more, from an empty device."""

import gc
import weakref

import pytest
import torch

from orchestrator.workers import worker
from trainables.models.full_weights import kept_weights
from trainables.values.errors import TrialFailed
from trainables.values.findings import TestEvaluation
from trainables.worker_cache import WorkerCache

FOUND = TestEvaluation(row_nats=(1.0,), untuned_row_nats=(2.0,), row_tokens=(3,), row_groups=("a",))


class Read:
    def texts(self, rows):
        return [[1]]

    def states(self, rows):
        return torch.zeros(2, 2)


@pytest.fixture
def full(workload) -> WorkerCache:
    """A worker that has a base, and what it made of rows."""
    cache = WorkerCache(workload, "cpu")
    cache.base("16bit")
    cache.readings.of(Read(), cache.rows["test"], None)
    return cache


def running_out(cache: WorkerCache, n_times: int, seen: list):
    """Work that memory runs out for so often; notes whether bases and readings were there, and keeps a state."""

    def find() -> TestEvaluation:
        states = torch.zeros(3)
        seen.append((bool(cache._bases), cache.readings.of_base(cache.rows["test"]) is not None, weakref.ref(states)))
        if len(seen) <= n_times:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return FOUND

    return find


def test_it_is_done_again_with_nothing_else_on_the_device(full):
    cache, seen = full, []
    cache.base("nf4")  # a second one: there is something to give up
    assert worker._found(cache, "test evaluation", running_out(cache, 1, seen)) is FOUND
    gc.collect()
    assert [one[:2] for one in seen] == [(True, True), (False, False)]
    assert seen[0][2]() is None


def test_what_does_not_fit_an_empty_device_fails_as_out_of_memory(full):
    cache, seen = full, []
    cache.base("nf4")
    with pytest.raises(TrialFailed) as failed:
        worker._found(cache, "comparison", running_out(cache, 5, seen))
    assert failed.value.state == "oom"
    assert len(seen) == 2


def test_it_is_not_done_again_where_there_is_nothing_to_give_up(workload):
    cache, seen = WorkerCache(workload, "cpu"), []
    with pytest.raises(TrialFailed):
        worker._found(cache, "comparison", running_out(cache, 1, seen))
    assert len(seen) == 1


def test_a_worker_that_forgets_keeps_no_readings(full):
    assert full.readings.of_base(full.rows["test"]) is not None
    full.forget()
    assert full.readings.of_base(full.rows["test"]) is None


def test_a_worker_whose_evaluation_ran_out_of_memory_keeps_no_full_weights_from_then_on(workload):
    cache, seen = WorkerCache(workload, "cpu"), []
    assert kept_weights(cache.base("nf4"))
    assert worker._found(cache, "test evaluation", running_out(cache, 1, seen)) is FOUND
    assert not kept_weights(cache.base("nf4"))


@pytest.mark.parametrize(("state", "n_kept"), [("oom", 0), ("diverged", 8)])
def test_a_trial_that_ran_out_of_memory_is_the_last_beside_full_weights(workload, state, n_kept):
    cache = WorkerCache(workload, "cpu")
    base = cache.base("nf4")
    assert len(kept_weights(base)) == 8
    assert worker._failed(cache, TrialFailed(state, "why")).state == state
    assert len(kept_weights(base)) == n_kept
    cache.forget()
    assert len(kept_weights(cache.base("nf4"))) == n_kept
