"""Where steps cannot be captured, or graphs leave too little memory, a trial goes on eagerly and says so."""

import io
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch

from trainables.trial import Trial
from trainables.values.config import TrialConfig
from trainables.values.results import MIB
from trainables.values.workload import Workload
from trainables.worker_cache import WorkerCache

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]


def outcome(config: TrialConfig, cache: WorkerCache) -> tuple[str | None, list[tuple[float, float]]]:
    """Why a trial's engine was eager, and its losses."""
    run = Trial(config, cache)
    try:
        return run.fallback, [(m.train_loss_nats, m.eval_loss_nats) for m in run.measurements()]
    finally:
        run.close()


def in_a_new_process(work, *args):
    """A failed capture may leave its mark on a process; so it gets one of its own."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def where_nothing_can_be_captured(workload: Workload, config: TrialConfig):
    """Two trials that ask for a graph and one that does not, and what was said.

    Anomaly detection reads each gradient on the host, which no capture allows.
    """
    cache, said = WorkerCache(workload, "cuda"), io.StringIO()
    with torch.autograd.set_detect_anomaly(True), redirect_stderr(said):
        asked_for_graph = [outcome(config, cache) for _ in range(2)]
        return asked_for_graph, outcome(replace(config, engine="eager"), cache), said.getvalue()


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_steps_that_cannot_be_captured_are_done_eagerly_which_is_said_once(workload, small_config, dropout):
    config = small_config(engine="graph", loop="lean", dropout=dropout)
    outcomes, (no_fallback, expected), said = in_a_new_process(where_nothing_can_be_captured, workload, config)
    print(outcomes[0][0])
    assert no_fallback is None
    assert all(fallback and losses == expected for fallback, losses in outcomes), (outcomes, expected)
    assert said.count("steps cannot be captured as CUDA graphs here") == 1, said


def with_memory_for_one_and_a_half(workload: Workload, config: TrialConfig):
    """A trial that asks for a graph where there is room for 1.5 times what its eager step takes beside the base."""
    cache = WorkerCache(workload, "cuda")
    eager = outcome(replace(config, engine="eager"), cache)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    outcome(replace(config, engine="eager"), cache)
    step_bytes = torch.cuda.max_memory_reserved() - before
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((before + 1.5 * step_bytes) / total)
    return step_bytes / MIB, eager, outcome(config, cache)


def test_a_trial_that_fits_eagerly_is_not_lost_to_its_graphs_memory(workload, small_config):
    config = small_config(engine="graph", loop="standard", batch_size=64, max_length_tokens=256, dropout=0.0)
    step_mib, (_, expected), (fallback, losses) = in_a_new_process(with_memory_for_one_and_a_half, workload, config)
    print(f"an eager step takes {step_mib:.0f} MiB; fallback: {fallback}")
    assert step_mib > 200, "too small a step: the limit would be within the allocator's rounding"
    for ours, theirs in zip(losses, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
