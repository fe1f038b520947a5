"""What equal runs differ by."""

from dataclasses import replace
from math import log
from statistics import variance

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orchestrator.analysis.noise import MIN_REPEATS, Noise, noise_of, pooled
from tests.bench import coverage
from tests.support.sweeps import cost, measurement, trial
from trainables.values.config import TrialConfig

CONFIG = TrialConfig(precision="16bit", rank=4, alpha=8)
LOSSES = st.lists(st.lists(st.floats(0.5, 9.0), min_size=1, max_size=5), max_size=5)


@given(LOSSES)
def test_the_pooled_variance_is_the_mean_of_the_groups_variances_by_their_degrees_of_freedom(groups):
    sd, n_degrees = pooled(groups)
    several = [group for group in groups if len(group) > 1]
    assert n_degrees == sum(len(group) - 1 for group in several)
    if not several:
        assert sd is None
        return
    expected = sum(variance(group) * (len(group) - 1) for group in several) / n_degrees
    assert sd**2 == pytest.approx(expected, abs=1e-12)


def run(number: int, loss: float, **config):
    return trial(number, config=replace(CONFIG, **config), history=(measurement(200, loss),))


def test_the_noise_of_loss_is_pooled_over_configs_that_ran_under_several_seeds():
    runs = [run(0, 2.0), run(1, 2.2, seed=1), run(2, 5.0, rank=8), run(3, 5.4, rank=8, seed=1), run(4, 9.0, rank=16)]
    (noise,) = noise_of(runs, ("eval_loss_nats",))
    assert (noise.sd, noise.n_degrees) == (pytest.approx(((0.02 + 0.08) / 2) ** 0.5), 2)
    assert noise.margin == pytest.approx(stats.t.ppf(0.95, 2) * 2**0.5 * noise.sd)


@pytest.mark.parametrize("state", ["pruned", "diverged", "running"])
def test_a_run_that_did_not_complete_tells_no_noise(state):
    runs = [run(0, 2.0), replace(run(1, 9.0, seed=1), state=state)]
    assert noise_of(runs, ("eval_loss_nats",))[0].sd is None


def test_memory_is_the_same_for_equal_runs():
    (noise,) = noise_of([], ("peak_memory_mib",))
    assert (noise.sd, noise.margin, noise.text) == (0.0, 0.0, "peak MiB 0")


def timed(number: int, seconds: float, **config):
    return trial(number, config=replace(CONFIG, **config), cost=cost(seconds_per_step=seconds, device="H200"))


def repeat(seconds: float, config=CONFIG, device: str = "H200"):
    return {"cost_key": config.cost_key, "device": device, "seconds_per_step": seconds}


def test_the_spread_of_time_counts_a_trial_s_own_measurement_and_each_repeat_once():
    trials = [timed(0, 1.0), timed(1, 1.0, learning_rate=1e-3)]  # of one cost key: one measurement
    (noise,) = noise_of(trials, ("seconds_per_step",), [repeat(1.0), repeat(1.2), repeat(1.1)])
    assert (noise.sd, noise.n_degrees) == (pytest.approx(variance(map(log, (1.0, 1.1, 1.2))) ** 0.5), 2)
    assert noise.text == "ms/step 46 % (2 degrees of freedom)"


def test_the_spread_of_time_is_not_known_from_fewer_measurements_of_one_cost_key():
    repeats = [repeat(1.0 + i / 10) for i in range(MIN_REPEATS)]
    assert noise_of([], ("seconds_per_step",), repeats)[0].sd is not None
    for fewer in (repeats[1:], [], [*repeats[:2], repeat(1.2, replace(CONFIG, rank=8)), repeat(1.2, device="T4")]):
        (noise,) = noise_of([], ("seconds_per_step",), fewer)
        assert (noise.sd, noise.margin) == (None, 0.0)
        assert noise.text == "ms/step not known yet, counted as 0"


@pytest.mark.parametrize("n_degrees", [1, 4, 20])
def test_nine_of_ten_equal_runs_lie_within_the_reach_of_one_however_few_tell_the_spread(n_degrees):
    held = coverage.one_run(n_degrees, 500, np.random.default_rng(n_degrees))
    assert held == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("n_degrees", [1, 2, 8])
def test_nine_of_ten_pairs_of_equal_runs_are_within_the_margin_however_few_runs_tell_the_spread(n_degrees):
    held = coverage.two_runs(n_degrees, 500, np.random.default_rng(n_degrees))
    assert held == pytest.approx(0.9, abs=0.01)


def test_a_spread_that_is_not_known_reaches_nowhere():
    assert Noise(objective="eval_loss_nats", sd=None).one_run == Noise(objective="eval_loss_nats").one_run == 0.0
