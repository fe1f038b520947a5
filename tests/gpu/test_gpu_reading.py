"""Graph readers on a real GPU: their outputs are those of the model with its adapter attached."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from orchestrator.workers import worker
from tests.support.adapters import drawn_files
from trainables.comparison import bias
from trainables.comparison.compare import attached, compare, evaluate_on_test
from trainables.evaluation import held_out
from trainables.evaluation.readers import EagerReader, GraphReader, Reader, Rows
from trainables.models import lora
from trainables.models.families.gpt2 import TARGETS
from trainables.values.config import TrialConfig
from trainables.values.workload import Workload
from trainables.worker_cache import WorkerCache

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]


@pytest.fixture
def exact_cache(wide: Workload) -> WorkerCache:
    """In float32, with few rows, so that both ways can agree to their last tokens."""
    cache = WorkerCache(replace(wide, compute_dtype="float32"), "cuda")
    cache.rows = cache.rows | {"validation": cache.rows["validation"][:80]}
    return cache


def files_of(cache: WorkerCache, config: TrialConfig) -> dict[str, bytes]:
    return drawn_files(cache.base(config.precision), config)


def assert_same(captured: Reader, eager: Reader, rows: Rows) -> torch.Tensor:
    texts = eager.texts(rows)
    assert captured.texts(rows) == texts
    states = captured.states(rows)
    torch.testing.assert_close(states, eager.states(rows), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(captured.pooled(rows, texts), eager.pooled(rows, texts), rtol=1e-4, atol=1e-4)
    return states


@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_one_reader_reads_with_each_adapter_in_turn_as_if_it_were_attached(exact_cache, precision):
    """Ranks, modules, scales, the base alone and sets of rows take turns; none leaves a trace in the next.

    Of the test rows fewer are decoded than of the others, in the same places.
    """
    exact_cache.rows = exact_cache.rows | {"test": exact_cache.rows["test"][:30]}
    base = exact_cache.base(precision)
    config = TrialConfig(precision=precision, rank=5, alpha=10, targets=TARGETS)
    adapters = [
        files_of(exact_cache, config),
        files_of(exact_cache, replace(config, rank=16, alpha=8, seed=1, rank_stabilized=True)),
        files_of(exact_cache, replace(config, rank=32, targets=TARGETS[:1], seed=2)),
    ]
    seen = []
    for files in (*adapters, None, adapters[0]):
        weights = lora.read_files(files) if files else None
        reader = exact_cache.reader((precision, ()), weights)
        assert isinstance(reader, GraphReader)
        seen.append(reader)
        for split in ("validation", "test"):
            rows = exact_cache.rows[split]
            if files is None:
                assert_same(reader, EagerReader(base), rows)
                continue
            with attached(base, files) as model:
                states = assert_same(reader, EagerReader(model), rows)
            assert (states - held_out.response_states(base, rows)).abs().max() > 1e-2, "the adapter does nothing"
    assert len(set(map(id, seen))) == 1


def test_a_comparison_is_the_same_by_graphs_and_eagerly_and_leaves_the_bases_bare(exact_cache):
    config = TrialConfig(precision="nf4", rank=4, alpha=8)
    nf4, baseline = (files_of(exact_cache, half) for half in (config, config.at_other_precision))
    by_graphs = compare(exact_cache, nf4=nf4, baseline=baseline)
    exact_cache.readings.clear()
    again = compare(exact_cache, nf4=nf4, baseline=baseline)
    assert by_graphs == again
    exact_cache.forget()
    exact_cache._graph_cache.fault = "the test wants it done eagerly"
    eager = compare(exact_cache, nf4=nf4, baseline=baseline)
    for name in ("embedding_cosine", "kl_nats", "top1_agreement", "token_match_rate"):
        ours, theirs = getattr(by_graphs.quantized, name), getattr(eager.quantized, name)
        assert ours.value == pytest.approx(theirs.value, abs=1e-4), name
    assert not [name for name, _ in exact_cache.base("nf4").named_modules() if "lora" in name]


def test_an_evaluation_on_test_rows_is_the_same_by_graphs_and_eagerly(exact_cache):
    config = TrialConfig(precision="nf4", rank=4, alpha=8)
    half = config.at_other_precision
    files, baseline, replicate = (files_of(exact_cache, one) for one in (config, half, replace(half, seed=1)))
    given = {"files": files, "baseline": baseline, "replicates": [replicate]}
    by_graphs = evaluate_on_test(exact_cache, config, **given)
    assert by_graphs == evaluate_on_test(exact_cache, config, **given)
    exact_cache.readings.clear()
    assert by_graphs == evaluate_on_test(exact_cache, config, **given)
    exact_cache.forget()
    assert exact_cache.readings.of_base(exact_cache.rows["test"]) is None
    exact_cache._graph_cache.fault = "the test wants it done eagerly"
    eager = evaluate_on_test(exact_cache, config, **given)
    assert [found.about for found in by_graphs.bias] == list(bias.WORDS)
    for ours, theirs in zip(by_graphs.bias, eager.bias, strict=True):
        assert ours.gap_nf4.value == pytest.approx(theirs.gap_nf4.value, abs=1e-5)
        assert ours.gap_16bit.value == pytest.approx(theirs.gap_16bit.value, abs=1e-5)
        assert ours.change.value != 0
    for name in ("row_nats", "baseline_row_nats", "untuned_row_nats"):
        np.testing.assert_allclose(getattr(by_graphs, name), getattr(eager, name), rtol=1e-4, err_msg=name)
    for name in ("embedding_cosine", "kl_nats", "top1_agreement", "token_match_rate"):
        ours, theirs = (getattr(found.comparison.quantized, name) for found in (by_graphs, eager))
        assert ours.value == pytest.approx(theirs.value, abs=1e-4), name
    assert not [name for name, _ in exact_cache.base("nf4").named_modules() if "lora" in name]


class Filling:
    """A reader whose states take a GiB."""

    def texts(self, rows: Rows) -> list[list[int]]:
        return []

    def states(self, rows: Rows) -> torch.Tensor:
        return torch.zeros(2**30, dtype=torch.uint8, device="cuda")


def test_a_comparison_that_memory_runs_out_for_is_done_once_more_from_an_empty_device_and_is_the_same(exact_cache):
    config = TrialConfig(precision="nf4", rank=4, alpha=8)
    given = {"nf4": files_of(exact_cache, config), "baseline": files_of(exact_cache, config.at_other_precision)}
    expected = compare(exact_cache, **given)
    exact_cache.forget()
    for precision in ("16bit", "nf4"):
        exact_cache.base(precision)
    exact_cache.readings.of(Filling(), (), None)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    try:
        found = worker._compared(exact_cache, (), **given)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert exact_cache.readings.of_base(()) is None, "memory never ran out"
    assert found == expected
