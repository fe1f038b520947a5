"""Trials on a real GPU: bfloat16 and float16, memory that repeats to the byte and is given back."""

import fcntl
import gc
from dataclasses import replace

import pytest
import torch

from trainables.comparison.compare import compare
from trainables.cost.device import count_gpus, native_dtype
from trainables.cost.device_lock import DeviceLock
from trainables.evaluation.held_out import eval_loss
from trainables.models import lora
from trainables.training.eager import EagerEngine
from trainables.trial import Trial
from trainables.values.config import TrialConfig
from trainables.values.errors import TrialFailed
from trainables.values.results import MIB
from trainables.worker_cache import WorkerCache

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]
PRECISIONS = ("16bit", "nf4")


@pytest.fixture
def gpu_cache(workload) -> WorkerCache:
    return WorkerCache(replace(workload, compute_dtype=native_dtype("cuda")), "cuda")


@pytest.fixture(params=PRECISIONS)
def precision(request):
    return request.param


def outcome(config: TrialConfig, cache: WorkerCache) -> tuple[float, list[float], list[float]]:
    """Peak in MiB, training losses and held-out losses of one trial, closed afterwards."""
    run = Trial(config, cache)
    try:
        measurements = list(run.measurements())
    finally:
        run.close()
    return (
        run.cost.peak_memory_mib,
        [m.train_loss_nats for m in measurements],
        [m.eval_loss_nats for m in measurements],
    )


def allocated_bytes() -> int:
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def test_this_gpu_is_counted():
    assert count_gpus() == torch.cuda.device_count() >= 1


@pytest.mark.skipif(
    torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False),
    reason="this GPU has no bfloat16 of its own",
)
def test_a_bfloat16_base_trains_and_its_loss_falls(gpu_cache, small_config, precision):
    assert gpu_cache.workload.compute_dtype == "bfloat16"
    config = small_config(precision=precision, max_steps=32, learning_rate=3e-3)
    _, _, held_out = outcome(config, gpu_cache)
    assert held_out[-1] < held_out[0] - 0.05, held_out
    floating = {p.dtype for p in gpu_cache.base(precision).parameters() if p.is_floating_point()}
    assert floating == {torch.bfloat16}


def test_nf4_peaks_under_16_bits_by_most_of_the_weights(wide, small_config):
    cache = WorkerCache(replace(wide, compute_dtype=native_dtype("cuda")), "cuda")
    peaks = {p: outcome(small_config(precision=p), cache)[0] for p in PRECISIONS}
    quantized_values = 4 * 12 * 256**2
    saved_mib = peaks["16bit"] - peaks["nf4"]
    assert saved_mib > 0.5 * quantized_values * (16 - 4.2) / 8 / MIB, peaks


def test_two_identical_trials_give_identical_bytes_and_losses(gpu_cache, small_config, precision):
    config = small_config(precision=precision, dropout=0.2, max_steps=16)
    assert outcome(config, gpu_cache) == outcome(config, gpu_cache)


def test_a_peak_does_not_depend_on_which_base_was_on_the_device_before(gpu_cache, small_config):
    configs = [small_config(precision=p) for p in (*PRECISIONS, *PRECISIONS)]
    outcome(configs[0], gpu_cache)  # the device's libraries take their workspaces at first use
    peaks = [outcome(config, gpu_cache)[0] for config in configs]
    assert peaks[:2] == peaks[2:]


def test_memory_returns_to_the_baseline_when_a_trial_is_closed(gpu_cache, small_config, precision):
    config = small_config(precision=precision)
    outcome(config, gpu_cache)  # loads the base; the device's libraries take their workspaces
    baseline = allocated_bytes()
    for _ in range(2):
        outcome(config, gpu_cache)
        assert allocated_bytes() == baseline


def test_a_pruned_trial_gives_its_memory_back(gpu_cache, small_config):
    outcome(small_config(), gpu_cache)
    baseline = allocated_bytes()
    run = Trial(small_config(), gpu_cache)
    measurements = run.measurements()
    next(measurements)
    measurements.close()
    run.close()
    assert allocated_bytes() == baseline


def test_out_of_memory_fails_the_trial_and_the_next_one_runs(gpu_cache, small_config):
    config = small_config()
    expected = outcome(config, gpu_cache)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        with pytest.raises(TrialFailed, match=r"ran out of memory at \d+ MiB") as caught:
            Trial(replace(config, batch_size=16_384), gpu_cache)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert caught.value.state == "oom"
    assert not any("lora" in name for name, _ in gpu_cache.base(config.precision).named_modules())
    del caught
    gc.collect()
    assert outcome(config, gpu_cache) == expected


def test_time_and_reserved_memory_are_plausible(gpu_cache, small_config, precision):
    run = Trial(small_config(precision=precision), gpu_cache)
    cost = run.cost
    run.close()
    assert 0 < cost.seconds_per_step_p10 <= cost.seconds_per_step <= cost.seconds_per_step_p90 < 10
    assert 0 < cost.peak_memory_mib <= cost.reserved_memory_mib
    assert cost.device == torch.cuda.get_device_name()


def test_comparing_a_pair_repeats_exactly(gpu_cache, small_config):
    files = {}
    for precision in PRECISIONS:
        run = Trial(small_config(precision=precision), gpu_cache)
        list(run.measurements())
        files[precision] = run.adapter_files()
        run.close()
    found = compare(gpu_cache, nf4=files["nf4"], baseline=files["16bit"])
    assert found == compare(gpu_cache, nf4=files["nf4"], baseline=files["16bit"])
    assert 0.5 < found.quantized.embedding_cosine.value < 1


@pytest.fixture
def half_cache(workload) -> WorkerCache:
    return WorkerCache(replace(workload, compute_dtype="float16"), "cuda")


def test_float16_trains_with_finite_loss(half_cache, small_config, precision):
    config = small_config(precision=precision, max_steps=32, learning_rate=3e-3)
    _, training, held_out = outcome(config, half_cache)
    assert all(torch.tensor([*training, *held_out]).isfinite())
    assert held_out[-1] < held_out[0]


def test_a_float16_overflow_skips_one_step_and_halves_the_scale(half_cache, small_config, precision):
    config = small_config(precision=precision, dropout=0.0)
    model = lora.attach(half_cache.base(precision), config, base_name="tiny")
    engine = EagerEngine(model, config, compute_dtype="float16", device="cuda")
    scaler = engine._accelerator.scaler
    ids = torch.randint(1024, (2, 64), generator=torch.Generator().manual_seed(0))

    def step() -> bool:
        """Do one step; whether it moved the adapter."""
        before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        assert engine.step(ids, ids).isfinite()
        after = [p for p in model.parameters() if p.requires_grad]
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in after)
        return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))

    try:
        step()  # the scaler comes to be with the first one
        scaler.update(2.0**10)
        assert step()
        assert scaler.get_scale() == 2.0**10
        scaler.update(2.0**60)
        assert not step()
        assert scaler.get_scale() == 2.0**59
        scaler.update(2.0**10)
        assert step()
    finally:
        lora.detach(model)


def test_held_out_loss_on_the_gpu_is_that_of_the_cpu_within_rounding(gpu_cache, cache, precision):
    rows = cache.rows["validation"][:32]
    on_gpu = eval_loss(gpu_cache.base(precision), rows)
    assert on_gpu == pytest.approx(eval_loss(cache.base(precision), rows), rel=0.02)


def test_a_base_with_a_block_at_16_bits_trains_alike_by_both_engines_and_unlike_one_without(gpu_cache, small_config):
    plain = small_config(precision="nf4", loop="lean", dropout=0.0)
    kept = replace(plain, keep_16bit=("transformer.h.0",))
    _, eager_losses, eager_held_out = outcome(kept, gpu_cache)
    _, losses, held_out = outcome(replace(kept, engine="graph"), gpu_cache)
    assert losses == pytest.approx(eager_losses, rel=2e-2)
    assert held_out == pytest.approx(eager_held_out, rel=2e-2)
    assert outcome(plain, gpu_cache)[1] != eager_losses


@pytest.mark.parametrize("phase", ["base", "capture", "training", "comparison", "test evaluation"])
def test_nobody_can_measure_alone_while_this_process_works_on_the_gpu(gpu_cache, phase, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_cache, "device_lock", DeviceLock("gpu", tmp_path))  # other tests' processes work there, too
    room = tmp_path / "gpu.room"
    with gpu_cache.working(phase), room.open("a") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with room.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
