"""One trial: repeatable, comparable to its baseline, and gone without a trace."""

import fcntl
import gc
import math
import os
import tempfile
import warnings
import weakref
from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace

import pytest
import safetensors.torch
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.bases import assert_untouched, state_of
from trainables import demo, trial
from trainables.cost.device import count_gpus, device_id, environment, native_dtype
from trainables.cost.device_lock import DeviceLock
from trainables.cost.memory import oom_as_failure
from trainables.data.rows import read_rows
from trainables.data.tokenized import tokenize
from trainables.data.tokens import IGNORE, load
from trainables.evaluation import held_out
from trainables.models import lora
from trainables.models.full_weights import kept_weights
from trainables.training.step_cost import N_TIMED_STEPS
from trainables.trial import Trial
from trainables.values.config import TrialConfig, rungs
from trainables.values.errors import ConfigError, TrialFailed
from trainables.values.results import MIB, Cost
from trainables.worker_cache import MAX_ON_HOST, WorkerCache

COST = Cost(
    peak_memory_mib=1.0,
    reserved_memory_mib=2.0,
    seconds_per_step=3.0,
    seconds_per_step_p10=2.5,
    seconds_per_step_p90=3.5,
    tokens_per_second=4.0,
    device="some other",
)


@pytest.fixture
def started(cache):
    """Start trials, one at a time on each base; the last are closed when the test ends."""
    open_trials: dict[str, Trial] = {}

    def start(config, *, cost=COST) -> Trial:
        if config.precision in open_trials:
            open_trials.pop(config.precision).close()
        open_trials[config.precision] = Trial(config, cache, cost=cost)
        return open_trials[config.precision]

    yield start
    for each in open_trials.values():
        each.close()


@pytest.mark.parametrize("is_timed", [True, False])
def test_others_are_kept_off_the_device_while_a_step_is_measured_where_its_time_decides(
    workload, is_timed, monkeypatch, tmp_path
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # in the machine's own, other tests measure, too
    cache = WorkerCache(workload, "cpu", is_timed=is_timed)
    room = tmp_path / f"qlora-sweep-{os.getuid()}" / f"{device_id('cpu')}.room"
    room.parent.mkdir(exist_ok=True)
    with cache.measuring(), room.open("a") as file, pytest.raises(BlockingIOError) if is_timed else nullcontext():
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert [span.phase for span in cache.timeline.take("worker 0")] == ["cost key"]


def test_others_wait_only_while_a_step_is_timed_and_not_while_its_memory_is_measured(
    cache, small_config, monkeypatch, tmp_path
):
    monkeypatch.setattr(cache, "device_lock", DeviceLock("cpu", tmp_path))  # in the machine's own, other tests measure
    room = tmp_path / "cpu.room"
    found: list[str] = []

    def look(*_):
        for kind, free_for in ((fcntl.LOCK_EX, "one alone"), (fcntl.LOCK_SH, "others"), (0, "nobody")):
            with room.open("a") as file, suppress(BlockingIOError):
                fcntl.flock(file, kind | fcntl.LOCK_NB) if kind else None
                found.append(free_for)
                return

    hook = cache.base("16bit").register_forward_pre_hook(look)
    run = Trial(small_config(precision="16bit"), cache)
    hook.remove()
    run.close()
    assert found == ["nobody"] * (1 + N_TIMED_STEPS["cpu"]) + ["others"] * 2, "on a CPU a step's memory takes two"
    assert {span.phase for span in cache.timeline.take("worker 0")} == {"base", "cost key"}


def losses_of(config, cache, cost=COST) -> list[tuple[float, float]]:
    run = Trial(config, cache, cost=cost)
    try:
        return [(m.train_loss_nats, m.eval_loss_nats) for m in run.measurements()]
    finally:
        run.close()


@pytest.fixture(params=["16bit", "nf4"])
def precision(request):
    return request.param


def test_a_trial_reports_each_rung_and_its_loss_falls(started, small_config, precision):
    config = small_config(precision=precision, max_steps=16, learning_rate=3e-3)
    measurements = list(started(config).measurements())
    assert [m.step for m in measurements] == list(rungs(16)) == [2, 4, 8, 16]
    assert all(math.isfinite(m.train_loss_nats) for m in measurements)
    assert measurements[-1].eval_loss_nats < measurements[0].eval_loss_nats


def test_a_trial_learns_on_the_demo(workload, tmp_path):
    tokens = tokenize(read_rows("demo"), demo.FOLDER, tmp_path)
    on = WorkerCache(replace(workload, base_folder=str(demo.FOLDER), data_folder=str(tokens.folder)), "cpu")
    config = TrialConfig(precision="nf4", rank=4, alpha=8, learning_rate=2e-3, max_length_tokens=128, max_steps=16)
    untuned = held_out.eval_loss(on.base("nf4"), on.rows["validation"])
    assert losses_of(config, on)[-1][1] < untuned - 0.05


def test_the_train_loss_of_a_rung_is_the_mean_over_its_steps(started, small_config):
    """At a vanishing learning rate each step's loss is that of the base on its batch."""
    run = started(small_config(learning_rate=1e-12, dropout=0.0, max_steps=8))
    base_losses = []
    for input_ids, labels, _ in run._batches.batches[:8]:
        with torch.no_grad():
            logits = run._training.model.eval()(input_ids=input_ids).logits[:, :-1].flatten(0, 1)
        base_losses.append(float(torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten())))
    reported = [m.train_loss_nats for m in run.measurements()]
    expected = [sum(base_losses[a:b]) / (b - a) for a, b in ((0, 1), (1, 2), (2, 4), (4, 8))]
    assert reported == pytest.approx(expected, abs=1e-5)


def test_the_training_curve_has_a_point_every_ten_steps_and_at_each_rung_of_the_steps_since_the_last(
    started, small_config
):
    """Weighed by their steps, a rung's points come to its mean."""
    measured = [*started(small_config(max_steps=24)).measurements()]
    assert [[step for step, _ in m.train_curve] for m in measured] == [[3], [6], [10, 12], [20, 24]]
    done = 0
    for m in measured:
        total, begin = 0.0, done
        for step, loss in m.train_curve:
            total += (step - done) * loss
            done = step
        assert total / (m.step - begin) == pytest.approx(m.train_loss_nats, abs=1e-5)


class Embeddings(TorchDispatchMode):
    """Counts the passes that no gradient is taken of."""

    n_without_gradient = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n_without_gradient += func is torch.ops.aten.embedding.default and not torch.is_grad_enabled()
        return func(*args, **(kwargs or {}))


def test_measured_at_its_end_alone_a_trial_comes_to_the_same_losses_and_passes_the_other_rungs(
    cache, small_config, precision
):
    config = small_config(precision=precision, dropout=0.2, max_steps=24)
    measured, passed, read = [], [], []
    for at in ((), (24,)):
        run = Trial(config, cache, cost=COST)
        with Embeddings() as embeddings:
            measured.append(list(run.measurements(at, passed.append)))
        read.append(embeddings.n_without_gradient)
        run.close()
    assert read[0] == 4 * read[1] > 0, "passes over held-out rows"
    *before, last = measured[0]
    (alone,) = measured[1]
    assert passed == [3, 6, 12]
    assert replace(alone, train_curve=last.train_curve) == last
    assert alone.train_curve == sum((m.train_curve for m in measured[0]), ())
    assert before[-1].eval_loss_nats != last.eval_loss_nats


def test_two_runs_of_one_config_give_identical_losses(cache, small_config, precision):
    config = small_config(precision=precision, dropout=0.2)
    assert losses_of(config, cache) == losses_of(config, cache)


def test_each_adapter_of_a_trial_is_put_on_a_bare_base(cache, small_config, precision):
    """One to measure the cost, one to train: peft warns where it finds another."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Already found a `peft_config`")
        for _ in range(2):
            Trial(small_config(precision=precision), cache).close()


def test_a_closed_trial_is_freed_at_once(cache, small_config, precision):
    gc.disable()
    try:
        run = Trial(small_config(precision=precision), cache)
        for _ in run.measurements():
            run.adapter_files()
        weights = [weakref.ref(p) for p in run._training.model.parameters() if p.requires_grad]
        assert len(weights) == 4
        run.close()
        assert not any(weight() is not None for weight in weights)
    finally:
        gc.enable()


def test_measuring_the_cost_first_changes_no_loss(cache, small_config, precision):
    config = small_config(precision=precision, dropout=0.2)
    assert losses_of(config, cache, cost=None) == losses_of(config, cache)


def test_another_seed_gives_other_losses(cache, small_config):
    assert losses_of(small_config(seed=1), cache) != losses_of(small_config(seed=2), cache)


def batches_of(run: Trial, n: int) -> list[tuple[list, list]]:
    return [(batch.input_ids.tolist(), batch.labels.tolist()) for batch in run._batches.batches[:n]]


def test_a_trial_and_its_baseline_see_the_same_batches(started, small_config):
    config = small_config(precision="nf4", seed=5)
    ours, baselines = started(config), started(config.at_other_precision)
    assert batches_of(ours, 20) == batches_of(baselines, 20)
    assert batches_of(ours, 20) != batches_of(started(replace(config, seed=6)), 20)


def test_a_fresh_adapter_is_the_same_whatever_became_of_the_last_one(cache, small_config, precision):
    config = small_config(precision=precision, seed=11)
    first = cache.fresh_matrices(config)
    as_it_was = {name: matrix.clone() for name, matrix in first.items()}
    for matrix in first.values():
        matrix.fill_(7.0)
    for again in (cache.fresh_matrices(config), cache.fresh_matrices(config.at_other_precision)):
        assert again.keys() == as_it_was.keys()
        assert all(torch.equal(again[name], as_it_was[name]) for name in again)
    for other in (replace(config, seed=12), replace(config, rank=3)):
        assert not any(
            a.shape == b.shape and torch.equal(a, b)
            for a, b in zip(
                [m for n, m in cache.fresh_matrices(other).items() if "lora_A" in n],
                [m for n, m in as_it_was.items() if "lora_A" in n],
                strict=True,
            )
        )


def test_an_adapter_that_is_attached_gives_the_fresh_one_before_it_is_trained(workload, small_config, precision):
    cache, config = WorkerCache(workload, "cpu"), small_config(precision=precision, seed=13)
    expected = cache.fresh_matrices(config)
    cache = WorkerCache(workload, "cpu")
    model = lora.attach(cache.base(precision), config, base_name="tiny")
    cache.fresh_adapters.keep(config, model)
    for weight in lora.matrices_of(model).values():
        weight.data.fill_(7.0)
    lora.detach(model)
    found = cache.fresh_matrices(config.at_other_precision)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert 7.0 not in torch.cat([matrix.flatten() for matrix in found.values()])


def test_a_bench_keeps_only_so_many_draws(cache, small_config):
    first = cache.batches(small_config(seed=100))
    assert cache.batches(small_config(seed=100, rank=3).at_other_precision) is first
    for seed in range(101, 101 + MAX_ON_HOST):
        cache.batches(small_config(seed=seed))
    assert cache.batches(small_config(seed=100)) is not first
    assert len(cache._batches) == MAX_ON_HOST


def first_update(run: Trial) -> torch.Tensor:
    """B of the first block after one step; its input is not quantized, so that only masks and gradients differ."""
    next(run.measurements())
    weights = safetensors.torch.load(run.adapter_files()["adapter_model.safetensors"])
    return weights["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"].flatten()


def test_a_trial_and_its_baseline_drop_the_same_inputs(started, small_config):
    """Under equal masks the cosine is about 0.6 (the base differs), under others about 0."""
    config = small_config(precision="nf4", dropout=0.9, rank=16, batch_size=1)
    ours, baselines = started(config), started(config.at_other_precision)
    first = first_update(ours)
    torch.rand(5)  # random numbers that others draw do not matter
    cosine = float(torch.nn.functional.cosine_similarity(first, first_update(baselines), dim=0))
    assert cosine > 0.4, cosine


@pytest.mark.parametrize("batch_size", [4, 7])
def test_a_pass_visits_every_training_row_once(started, small_config, batch_size):
    run = started(small_config(batch_size=batch_size, max_length_tokens=256, max_steps=2 * 1000 // batch_size + 1))
    seen = [
        tuple(token for token in row if token != IGNORE)
        for _, labels, _ in run._batches.batches
        for row in labels.tolist()
    ]
    rows = [row.input_ids[row.n_prompt_tokens :] for row in load(run._cache.workload.data_folder)["train"]]
    assert Counter(seen[:1000]) == Counter(seen[1000:2000]) == Counter(rows)
    assert seen[:1000] != seen[1000:2000]


def test_a_pruned_trial_leaves_the_base_untouched(cache, small_config, precision):
    base = cache.base(precision)
    before = state_of(base)
    run = Trial(small_config(precision=precision), cache)
    measurements = run.measurements()
    assert next(measurements).step == 1
    measurements.close()
    run.close()
    assert cache.base(precision) is base
    assert_untouched(base, before)


@pytest.mark.parametrize("learning_rate", [1e20, 1e30])
def test_a_loss_that_is_not_finite_fails_the_trial_as_diverged(cache, small_config, precision, learning_rate):
    before = state_of(cache.base(precision))
    run = Trial(small_config(precision=precision, learning_rate=learning_rate), cache, cost=COST)
    with pytest.raises(TrialFailed, match="not finite at step") as caught:
        list(run.measurements())
    assert caught.value.state == "diverged"
    run.close()
    assert_untouched(cache.base(precision), before)


def test_rows_longer_than_the_base_has_positions_are_refused(cache, small_config):
    before = state_of(cache.base("16bit"))
    with pytest.raises(ConfigError, match="max_length_tokens is 257, the base has 256 positions"):
        Trial(small_config(max_length_tokens=257), cache)
    assert_untouched(cache.base("16bit"), before)


def test_cost_is_measured_on_full_batches_and_its_parts_agree(started, small_config, precision):
    config = small_config(precision=precision)
    cost = started(config, cost=None).cost
    assert 0 < cost.seconds_per_step_p10 <= cost.seconds_per_step <= cost.seconds_per_step_p90
    assert cost.tokens_per_second == pytest.approx(2 * 64 / cost.seconds_per_step)
    assert cost.device == environment("cpu")["device"]
    logits_mib = 2 * 64 * 1024 * 4 / 2**20
    assert cost.peak_memory_mib > 2 * logits_mib  # logits and their gradient, at least


def test_peak_memory_repeats_exactly_and_grows_with_rank_and_length(started, small_config, precision):
    config = small_config(precision=precision)
    changed = [config, config, replace(config, rank=64), replace(config, max_length_tokens=128)]
    peaks = [started(each, cost=None).cost.peak_memory_mib for each in changed]
    assert peaks[0] == peaks[1] < peaks[2]
    assert peaks[0] < peaks[3]


def test_configs_of_one_cost_key_have_one_peak(started, small_config):
    config = small_config()
    other = replace(config, alpha=64, learning_rate=1e-2, seed=9, max_steps=7, rank_stabilized=True, dropout=0.3)
    assert config.cost_key == other.cost_key
    peaks = [started(each, cost=None).cost.peak_memory_mib for each in (config, other)]
    assert peaks[0] == peaks[1]


def test_the_adapters_files_hold_what_the_last_rung_measured(cache, small_config, precision):
    run = Trial(small_config(precision=precision, learning_rate=3e-3), cache, cost=COST)
    *_, last = run.measurements()
    files = run.adapter_files()
    run.close()
    model = lora.from_files(cache.base(precision), files)
    assert held_out.eval_loss(model, cache.rows["validation"]) == last.eval_loss_nats
    lora.detach(model)


def test_a_base_is_freed_when_a_trial_ran_out_of_memory_even_while_the_failure_is_handled(workload, small_config):
    """Else the next trial would be measured with the last base still there."""
    cache = WorkerCache(workload, "cpu")
    base = cache.base("16bit")
    gone = weakref.ref(base)

    def fill(*_) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    base.transformer.register_forward_pre_hook(fill)
    del base
    with pytest.raises(TrialFailed) as caught:
        trial.Trial(small_config(precision="16bit"), cache)
    gc.collect()
    assert (caught.value.state, gone()) == ("oom", None)
    trial.Trial(small_config(precision="16bit"), cache).close()


@pytest.mark.parametrize("n_there", [0, 1])
def test_a_base_for_which_there_is_no_room_is_loaded_once_the_other_is_given_up(workload, n_there):
    class OneAtATime(WorkerCache):
        def _load(self, form):
            if self._bases or not n_there:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super()._load(form)

    cache = OneAtATime(workload, "cpu")
    if not n_there:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            cache.base("16bit")
        return
    cache.base("16bit")
    assert cache.base("nf4").is_loaded_in_4bit
    assert not kept_weights(cache.base("nf4")), "memory ran out"


def test_running_out_of_gpu_memory_fails_the_trial_as_oom():
    with pytest.raises(TrialFailed, match="out of memory") as caught, oom_as_failure():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    assert caught.value.state == "oom"


def test_a_machine_is_described_without_a_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert count_gpus() == 0
    assert native_dtype("cpu") == "float32"
    found = environment("cpu")
    assert found["device"].startswith("CPU ")
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__


# --- what the peak is made of, what stays behind, what is not finite


@pytest.fixture(params=["standard", "lean"])
def loop(request):
    return request.param


def test_the_parts_of_a_measured_peak_add_up_to_it_and_are_those_of_its_tensors(cache, small_config, precision, loop):
    run = Trial(small_config(precision=precision, loop=loop), cache)
    weights = {p.untyped_storage()._cdata: p for p in run._training.model.parameters() if not p.requires_grad}
    base_mib = sum(p.untyped_storage().nbytes() for p in weights.values()) / MIB
    adapter_mib = sum(p.nbytes for p in run._training.model.parameters() if p.requires_grad) / MIB
    run.close()
    parts = asdict(run.cost.breakdown)
    assert min(parts.values()) >= 0
    assert sum(parts.values()) == pytest.approx(run.cost.peak_memory_mib, rel=0.01)
    assert parts["base_weights_mib"] == pytest.approx(base_mib)
    assert (parts["quantization_constants_mib"] > 0) == (precision == "nf4")
    assert parts["adapter_mib"] == pytest.approx(adapter_mib)
    assert parts["optimizer_mib"] == pytest.approx(2 * adapter_mib, abs=1e-4)  # and a count for each weight
    assert parts["activations_mib"] > 0


@pytest.mark.parametrize(
    ("n_mib", "fault"), [(1, None), (3, r"3\.\d MiB stay on the device after a trial \(at most 2\)")]
)
def test_what_a_trial_leaves_behind_is_an_error_that_names_its_size(cache, small_config, n_mib, fault):
    gc.collect()
    run = Trial(small_config(), cache, cost=COST)
    left = torch.ones(n_mib * MIB, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=fault) if fault else nullcontext():
        run.close()
    assert left.all()


def poisoned(run: Trial, value: float, steps: range) -> None:
    """Make one weight's gradient not finite at these steps, from 1."""
    weight = next(p for p in run._training.model.parameters() if p.requires_grad)
    count = iter(range(1, 1000))
    weight.register_hook(lambda gradient: torch.full_like(gradient, value) if next(count) in steps else gradient)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (range(3, 9), r"not finite at step 4: training loss from step 4; gradients in 2 steps so far"),
        (range(4, 5), r"not finite at step 4: held-out loss nan; gradients in 1 steps so far"),
    ],
    ids=["from step 3 on", "in a rung's last step"],
)
def test_a_gradient_that_is_not_finite_ends_the_trial_within_its_rung(
    cache, small_config, precision, loop, value, steps, reason
):
    """In float32 it makes the weight NaN, and that the next loss. Rungs are 1, 2, 4 and 8."""
    run = Trial(small_config(precision=precision, loop=loop, max_steps=8), cache, cost=COST)
    poisoned(run, value, steps)
    measurements = run.measurements()
    assert [next(measurements).step, next(measurements).step] == [1, 2]
    with pytest.raises(TrialFailed, match=reason) as caught:
        next(measurements)
    run.close()
    assert caught.value.state == "diverged"


@pytest.mark.parametrize("at", [(1, 2, 4, 8), (1, 2, 8)], ids=["which is measured", "which is passed"])
def test_a_loss_that_turns_nan_between_two_rungs_ends_the_trial_at_the_second(cache, small_config, precision, loop, at):
    run = Trial(small_config(precision=precision, loop=loop, max_steps=8), cache, cost=COST)
    measurements = run.measurements(at)
    assert [next(measurements).step, next(measurements).step] == [1, 2]
    with torch.no_grad():
        next(p for p in run._training.model.parameters() if p.requires_grad).fill_(math.nan)
    with pytest.raises(TrialFailed, match="not finite at step 4: training loss from step 3; gradients in 2") as caught:
        next(measurements)
    run.close()
    assert caught.value.state == "diverged"
