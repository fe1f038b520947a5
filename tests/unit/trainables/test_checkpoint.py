"""A trial that goes on from a checkpoint against one that never stopped; checkpoints as files."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.workers import checkpoints
from tests.support.sweeps import cost
from trainables.cost import memory
from trainables.models.families.gpt2 import TARGETS
from trainables.training.eager import flattened
from trainables.trial import Trial
from trainables.values.checkpoint import Checkpoint, EngineState
from trainables.values.config import TrialConfig
from trainables.worker_cache import WorkerCache

STEPS = 8


def checkpoint_of(key: str = "a" * 64, step: int = 2, size: int = 3, **values) -> Checkpoint:
    vectors = [np.arange(size, dtype=np.float32) + i for i in range(3)]
    state = EngineState(
        weights=vectors[0],
        first_moments=vectors[1],
        second_moments=vectors[2],
        n_updates=step,
        n_bad_gradients=0,
        n_steps=step,
    )
    return Checkpoint(**{"key": key, "step": step, "seconds": 1.5, "engine": state} | values)


def same(a: Checkpoint, b: Checkpoint) -> bool:
    """Equal to the bit."""
    return a.to_bytes() == b.to_bytes()


def trained(config, cache: WorkerCache, *, checkpoint: Checkpoint | None = None, stop_at: int | None = None):
    """Measurements, the adapter's files at the end, and a checkpoint at each rung that was gone on from."""
    trial = Trial(config, cache, cost=cost(), checkpoint=checkpoint)
    try:
        found, taken = [], {}
        for measurement in trial.measurements():
            found.append(measurement)
            taken[measurement.step] = trial.checkpoint(measurement.step, seconds=1.0)
            if measurement.step == stop_at:
                break
        return found, trial.adapter_files(), taken
    finally:
        trial.close()


def losses(measurements):
    return [(m.step, m.train_loss_nats, m.eval_loss_nats, m.train_curve) for m in measurements]


@pytest.mark.parametrize(
    ("dropout", "precision", "loop"),
    [
        (0.0, "16bit", "standard"),
        (0.3, "nf4", "lean"),
        pytest.param(0.0, "nf4", "lean", marks=pytest.mark.slow),
        pytest.param(0.3, "nf4", "standard", marks=pytest.mark.slow),
        pytest.param(0.3, "16bit", "lean", marks=pytest.mark.slow),
    ],
)
def test_a_trial_that_goes_on_has_the_losses_and_weights_of_one_that_never_stopped(
    cache, small_config, dropout, precision, loop
):
    """To the bit, after another trial has trained on the same worker."""
    config = small_config(precision=precision, loop=loop, dropout=dropout, max_steps=STEPS)
    whole, files, taken = trained(config, cache)
    trained(replace(config, seed=7, max_steps=1), cache)
    rest, same_files, _ = trained(config, cache, checkpoint=Checkpoint.from_bytes(taken[2].to_bytes()))
    assert losses(rest) == losses(whole)[2:]
    assert same_files == files


@pytest.mark.parametrize(
    "recipe",
    [
        {"schedule": "cosine", "warmup_share": 0.3},
        {"schedule": "linear", "gradient_checkpointing": True, "precision": "nf4"},
        {"optimizer": "adamw_8bit", "rank": 32, "targets": TARGETS},
    ],
)
def test_a_trial_of_any_recipe_goes_on_as_if_it_had_never_stopped(cache, small_config, recipe):
    config = small_config(dropout=0.3, loop="lean", max_steps=STEPS, **recipe)
    whole, files, taken = trained(config, cache)
    rest, same_files, _ = trained(config, cache, checkpoint=Checkpoint.from_bytes(taken[2].to_bytes()))
    assert losses(rest) == losses(whole)[2:]
    assert same_files == files
    assert bool(taken[2].engine.quantized) == (config.optimizer == "adamw_8bit")


def keep(taken: dict[int, Checkpoint], trial: Trial, step: int) -> None:
    taken[step] = trial.checkpoint(step, seconds=1.0)


def test_a_trial_that_is_measured_at_its_end_alone_goes_on_from_a_rung_that_it_passed(cache, small_config):
    config = small_config(dropout=0.3, max_steps=STEPS)
    taken, measured = {}, []
    for rung in (None, 2, 4):
        checkpoint = Checkpoint.from_bytes(taken[rung].to_bytes()) if rung else None
        trial = Trial(config, cache, cost=cost(), checkpoint=checkpoint)
        measured += trial.measurements((STEPS,), partial(keep, taken, trial))
        trial.close()
    assert losses(measured) == 3 * losses(measured[:1])
    assert [step for step, _ in measured[0].train_curve] == [1, 2, 4, 8]
    assert Checkpoint.from_bytes(taken[4].to_bytes()).curve == measured[0].train_curve[:3]


def test_the_steps_done_are_a_part_of_it_for_the_next_masks_follow_from_them(cache, small_config):
    config = small_config(dropout=0.3, max_steps=STEPS)
    whole, _, taken = trained(config, cache)
    assert taken[2].engine.n_steps == 2
    other = replace(taken[2], engine=replace(taken[2].engine, n_steps=3))
    rest, _, _ = trained(config, cache, checkpoint=other)
    assert losses(rest)[0] != losses(whole)[1]


@pytest.fixture(scope="module")
def uninterrupted(cache):
    """A trial without dropout that never stopped: its config, its measurements and its checkpoints."""
    config = TrialConfig(
        precision="16bit", rank=4, alpha=8, batch_size=2, max_length_tokens=64, max_steps=STEPS, dropout=0.0
    )
    whole, _, taken = trained(config, cache)
    return config, whole, taken


@pytest.mark.parametrize("part", ["weights", "first_moments", "second_moments", "n_updates"])
def test_all_of_the_optimizer_is_a_part_of_it(cache, uninterrupted, part):
    config, whole, taken = uninterrupted
    engine = taken[4].engine
    changed = 1 if part == "n_updates" else np.zeros_like(getattr(engine, part)) + 1e-3
    rest, _, _ = trained(config, cache, checkpoint=replace(taken[4], engine=replace(engine, **{part: changed})))
    assert losses(rest)[0] != losses(whole)[2]


def test_it_goes_on_twice_and_stops_in_between(cache, small_config):
    config = small_config(dropout=0.3, max_steps=STEPS)
    whole, files, _ = trained(config, cache)
    first, _, taken = trained(config, cache, stop_at=2)
    second, _, taken = trained(config, cache, checkpoint=taken[2], stop_at=4)
    third, same_files, _ = trained(config, cache, checkpoint=taken[4])
    assert losses([*first, *second, *third]) == losses(whole)
    assert same_files == files


def test_a_checkpoint_of_an_adapter_of_another_size_is_refused_and_the_base_stays_untouched(cache, small_config):
    _, _, taken = trained(small_config(rank=2, max_steps=STEPS), cache, stop_at=2)
    before = [p.clone() for p in cache.base("16bit").parameters()]
    with pytest.raises(ValueError, match="the checkpoint has"):
        trained(small_config(rank=4, max_steps=STEPS), cache, checkpoint=taken[2])
    assert all(torch.equal(a, b) for a, b in zip(before, cache.base("16bit").parameters(), strict=True))


def test_a_file_holds_all_of_it():
    state = replace(checkpoint_of().engine, n_bad_gradients=3, loss_scale=2.0**15, n_good_steps=77)
    checkpoint = checkpoint_of(engine=state, seconds=0.1 + 0.2)
    read = Checkpoint.from_bytes(checkpoint.to_bytes())
    assert same(read, checkpoint)
    assert (read.key, read.step, read.seconds) == (checkpoint.key, checkpoint.step, checkpoint.seconds)
    assert (read.engine.loss_scale, read.engine.n_good_steps, read.engine.n_bad_gradients) == (2.0**15, 77, 3)
    assert read.engine.weights.tolist() == [0.0, 1.0, 2.0]


@given(st.binary(max_size=200))
def test_bytes_that_are_no_checkpoint_are_a_value_error(content):
    with pytest.raises(ValueError, match="no checkpoint"):
        Checkpoint.from_bytes(content)


@given(data=st.data())
def test_a_checkpoint_with_any_bit_flipped_or_any_end_cut_off_is_never_read_as_another(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    before, last = checkpoint_of(step=2), checkpoint_of(step=4, size=5)
    checkpoints.write(folder, before)
    checkpoints.write(folder, last)
    (path,) = folder.glob("*/0000000004-*")
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path.write_bytes(content)
    assert same(checkpoints.read(folder, last.key), before)
    path.unlink()
    assert same(checkpoints.read(folder, last.key), before)


def test_the_newest_checkpoint_is_read_and_two_are_kept(tmp_path):
    for step in (1, 2, 4, 8):
        checkpoints.write(tmp_path, checkpoint_of(step=step))
    checkpoints.write(tmp_path, checkpoint_of(key="b" * 64, step=1))
    assert checkpoints.read(tmp_path, "a" * 64).step == 8
    assert checkpoints.read(tmp_path, "b" * 64).step == 1
    assert checkpoints.read(tmp_path, "c" * 64) is None
    assert sorted(path.name.split("-")[0] for path in (tmp_path / ("a" * 64)).iterdir()) == ["0000000004", "0000000008"]


def test_a_trials_checkpoint_is_never_taken_for_anothers(tmp_path):
    checkpoints.write(tmp_path, checkpoint_of())
    (tmp_path / ("a" * 64)).rename(tmp_path / ("b" * 64))
    assert checkpoints.read(tmp_path, "b" * 64) is None


def test_all_are_damaged_or_gone_is_none(tmp_path):
    checkpoints.write(tmp_path, checkpoint_of())
    (path,) = tmp_path.glob("*/*")
    path.write_bytes(b"")
    assert checkpoints.read(tmp_path, "a" * 64) is None


def test_only_unfinished_trials_keep_theirs(tmp_path):
    for key in "abc":
        checkpoints.write(tmp_path, checkpoint_of(key=key * 64))
    checkpoints.discard(tmp_path, "a" * 64)
    checkpoints.keep_only(tmp_path, {"b" * 64})
    assert [path.name for path in tmp_path.iterdir()] == ["b" * 64]
    checkpoints.keep_only(tmp_path, set())
    assert not tmp_path.exists()
    checkpoints.keep_only(tmp_path, set())


def test_a_checkpoint_that_outlives_its_trial_is_no_tensor_left_behind():
    """A worker still holds the last one when its trial is checked for what it leaves."""
    weight = torch.arange(2**20, dtype=torch.float32).view(1024, 1024)
    before = memory.allocated_mib("cpu")
    kept = flattened([weight, weight[:10]])
    assert memory.allocated_mib("cpu") == pytest.approx(before, abs=0.1)
    assert kept.tolist() == [*weight.flatten().tolist(), *weight[:10].flatten().tolist()]
