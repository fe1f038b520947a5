"""Stopping what promises too little for the front: what a trial can hope for, by hand and in a whole sweep."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from orchestrator.objectives import DEFAULT
from orchestrator.pruning.hypervolume import HypervolumeStop
from orchestrator.pruning.learning_curves import (
    MAX_DEVIATIONS,
    MIN_CURVES,
    RIDGE,
    SURPRISE,
    LearningCurves,
    fall_of,
    measured,
)
from search_spaces import EarlyTerminate
from tests.support.sweeps import GRID, Desk, completes, cost, make, measurement, space, trial

RULE = EarlyTerminate(type="hypervolume")
HYPERVOLUME = {"early_terminate": {"type": "hypervolume"}}
WIDE = GRID | {
    "parameters": {"rank": {"values": list(range(1, 41))}},
    "fixed": {"alpha": 8, "max_steps": 8, "precision": "16bit"},
}


def falls(desk: Desk, losses: tuple[float, ...], mib: float, *, protect: bool = False) -> str:
    """Run a trial with these losses at its rungs; returns its final state."""

    def worker(task):
        for loss, report in zip(losses, completes(task, costs=cost(peak_memory_mib=mib)), strict=True):
            yield replace(report, measurement=measurement(report.measurement.step, loss))

    trial_id = desk.take(worker)
    if protect:
        desk.driver.agenda.protected.add(desk.asked[-1].key)
    desk.end(trial_id)
    return desk.states[desk.asked[-1].key]


@pytest.fixture
def desk(tmp_path) -> Desk:
    """Four completed trials; a half of the first rung's loss is left at the end."""
    desk = Desk(tmp_path, make(space(WIDE | HYPERVOLUME)))
    for end, mib in ((2.0, 100.0), (1.5, 110.0), (1.2, 120.0), (1.0, 130.0)):
        assert falls(desk, (2 * end, 1.6 * end, 1.2 * end, end), mib) == "completed"
    return desk


def test_a_trial_whose_most_hopeful_end_is_dominated_is_stopped_at_the_first_rung_and_says_why(desk):
    assert falls(desk, (9.0, 2.0, 1.0, 0.1), 125.0) == "pruned"
    stopped = desk.ledger.entry(desk.asked[-1].key).result
    assert [m.step for m in stopped.history] == [1]
    assert "hypervolume: at step 1 its most hopeful end" in stopped.reason
    assert "would add 0.00% to what the front dominates, too little" in stopped.reason


def test_a_trial_that_can_still_get_onto_the_front_goes_on_however_bad_it_looks_now(desk):
    assert falls(desk, (2.2, 1.7, 1.3, 1.3), 125.0) == "completed", "2.2 / 2 = 1.1 beats 1.2 at 120 MiB"


def test_a_later_rung_stops_what_an_earlier_one_let_pass(desk):
    assert falls(desk, (2.2, 2.1, 2.0, 1.9), 125.0) == "pruned"
    steps = [m.step for m in desk.ledger.entry(desk.asked[-1].key).result.history]
    assert steps[0] == 1
    assert 2 in steps
    assert 8 not in steps


def test_what_alone_is_the_cheapest_goes_on_whatever_its_loss(desk):
    assert falls(desk, (9.0, 9.0, 9.0, 9.0), 99.0) == "completed"


def test_what_costs_more_than_all_before_it_can_still_be_the_one_of_least_loss(desk):
    falls(desk, (3.2, 2.0, 1.4, 1.28), 140.0, protect=True)  # from now on 0.4 of the first loss can be hoped for
    assert falls(desk, (2.2, 1.5, 1.1, 0.8), 400.0) == "completed", "0.88 would be the least, beyond the front's costs"


def test_a_protected_trial_is_never_stopped(desk):
    assert falls(desk, (9.0, 9.0, 9.0, 9.0), 125.0, protect=True) == "completed"


def test_nothing_is_stopped_before_four_trials_completed(tmp_path):
    desk = Desk(tmp_path, make(space(WIDE | HYPERVOLUME)))
    states = [falls(desk, (loss, loss, loss, loss), 100.0) for loss in (1.0, 9.0, 9.0, 9.0, 9.0)]
    assert states == ["completed"] * 4 + ["pruned"]


def test_a_resumed_sweep_stops_as_if_it_had_never_stopped(desk):
    folder, asked = desk.folder, desk.settings
    desk.crash()
    assert falls(Desk(folder, asked), (9.0, 2.0, 1.0, 0.1), 125.0) == "pruned"


def test_trials_of_another_kind_of_device_have_a_front_of_their_own():
    rule = HypervolumeStop(RULE, 8, DEFAULT)
    for number, device in enumerate(["T4"] * MIN_CURVES):
        history = (measurement(1, 2.0), measurement(8, 1.0))
        rule.learn(trial(number, state="completed", history=history, cost=cost(device=device)))
    for device, stops in (("T4", True), ("H200", False)):
        assert bool(rule.at_rung("new", measurement(1, 9.0), cost(device=device), may_stop=True)) == stops


CURVES = st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 1), st.floats(0.1, 1)), min_size=MIN_CURVES, max_size=12)
"""Of each: its loss at the first rung, what is left of it at the second, and of that at the end."""


def learned(curves) -> tuple[LearningCurves, list]:
    """Curves of three rungs taken in, and their histories."""
    known = LearningCurves(("eval_loss_nats",))
    histories = []
    for first, second, last in curves:
        histories.append((measurement(1, first), measurement(2, first * second), measurement(8, first * second * last)))
        known.learn(histories[-1], cost())
    return known, histories


@settings(max_examples=50)
@given(CURVES)
def test_no_trial_that_was_learned_from_was_a_larger_surprise_than_the_fit_says(curves):
    known, histories = learned(curves)
    for history in histories:
        for n_rungs in (1, 2):
            hopeful, typical = (f(history[:n_rungs], cost())[0] for f in (known.hopeful, known.typical))
            assert hopeful <= typical
            surprise = known._falls[history[n_rungs - 1].step][0].surprise
            assert history[-1].eval_loss_nats >= typical - surprise - 1e-9
            assert typical - hopeful >= SURPRISE * surprise - 1e-9


@settings(max_examples=50)
@given(CURVES)
def test_the_error_of_a_fit_is_that_of_fits_to_all_trials_but_one(curves):
    rows = np.array([(first * second, first - first * second) for first, second, _ in curves])
    falls = np.array([first * second * (1 - last) for first, second, last in curves])
    fit = fall_of(rows, falls)
    spread = rows.std(axis=0)
    own = np.clip((rows - rows.mean(axis=0)) / np.where(spread > 1e-12, spread, 1), -MAX_DEVIATIONS, MAX_DEVIATIONS)
    table = np.column_stack([np.ones(len(own)), own - own.mean(axis=0)])
    ridge = np.diag([0, RIDGE, RIDGE])
    errors = []
    for out in range(len(falls)):
        left = np.arange(len(falls)) != out
        weights = np.linalg.solve(table[left].T @ table[left] + ridge, table[left].T @ falls[left])
        errors.append(falls[out] - table[out] @ weights)
    assume(np.allclose(own.mean(axis=0), 0) and all(np.abs(own).max(axis=0) < MAX_DEVIATIONS))
    assume((np.abs(errors) < 1e6).all() and leverages(own).max() < 0.9)
    assert fit.error == pytest.approx(np.sqrt(np.mean(np.square(errors))), abs=1e-9)
    assert fit.surprise == pytest.approx(max(0, max(errors)), abs=1e-9)


def leverages(own: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(own.T @ own + RIDGE * np.eye(2))
    return 1 / len(own) + (own @ inverse * own).sum(axis=1)


def test_a_slow_curve_is_told_from_a_fast_one_by_its_last_fall():
    known, _ = learned([(4.0 + i / 10, 0.9, 0.9) for i in range(5)] + [(2.4 + i / 10, 0.6, 0.95) for i in range(5)])
    fast, slow = ((measurement(1, first), measurement(2, 2.2)) for first in (3.6, 2.4))
    assert known.typical(fast, cost())[0] != pytest.approx(known.typical(slow, cost())[0], abs=0.01)


def test_curves_that_agree_leave_little_to_hope_for_and_more_of_them_less():
    def hope(n: int) -> float:
        known, histories = learned([(2 + (i % 5) / 10, 0.8, 0.9) for i in range(n)])
        return float((known.typical(histories[0][:1], cost()) - known.hopeful(histories[0][:1], cost()))[0])

    assert 0 < hope(40) < hope(5) < 0.05


def test_costs_are_at_the_first_rung_what_they_are_at_the_end():
    known = LearningCurves(measured(DEFAULT))
    for _ in range(MIN_CURVES):
        known.learn((measurement(1, 4.0), measurement(8, 1.0)), cost(peak_memory_mib=7.0))
    its_cost = cost(peak_memory_mib=9.0, seconds_per_step=0.3)
    assert known.hopeful((measurement(1, 4.0),), its_cost).tolist() == [9.0, 0.3, 1.0]


def test_a_history_of_nothing_teaches_nothing_and_an_unknown_rung_has_no_end():
    known = LearningCurves(("eval_loss_nats",))
    known.learn((), cost())
    history = (measurement(1, 1.0),)
    assert known.hopeful(history, cost()) is known.typical(history, cost()) is None


@pytest.fixture
def pairs(tmp_path) -> Desk:
    """Two completed 4-bit trials, each with its baseline; a quarter of the first rung's loss is left at the end."""
    desk = Desk(tmp_path, make(space(WIDE | HYPERVOLUME | {"fixed": WIDE["fixed"] | {"precision": "nf4"}})))
    for loss, mib in ((2.0, 100.0), (1.0, 120.0)):
        for precision in ("nf4", "16bit"):
            assert falls(desk, (4 * loss, 3 * loss, 2 * loss, loss), mib + 50 * (precision == "16bit")) == "completed"
            assert desk.asked[-1].config.precision == precision
    return desk


def test_a_4_bit_trial_whose_end_adds_nothing_counts_as_stopped_there_and_gets_no_baseline(pairs):
    assert falls(pairs, (3.6, 2.7, 1.7, 1.5), 125.0) == "pruned"
    stopped = pairs.ledger.entry(pairs.asked[-1].key)
    assert [m.step for m in stopped.result.history] == [1, 2, 4, 8]
    assert "hypervolume: its end (peak_memory_mib 125, seconds_per_step 1, eval_loss_nats 1.5)" in stopped.result.reason
    assert "for a 16-bit baseline" in stopped.result.reason
    assert stopped.adapter_sha256 is None
    assert pairs.study.trials[-1].values == [125.0, 1.0, 1.5], "the sampler is told what it came to"
    assert falls(pairs, (2.0, 1.5, 1.0, 0.5), 130.0) == "completed"
    assert [task.config.precision for task in pairs.asked[-2:]] == ["nf4", "nf4"]
    assert falls(pairs, (2.0, 1.5, 1.0, 0.5), 180.0) == "completed"
    assert pairs.asked[-1].config == pairs.asked[-2].config.at_other_precision


def test_a_16_bit_trial_completes_whatever_its_end_adds_as_nothing_more_is_spent_on_it(desk):
    assert falls(desk, (1.9, 1.5, 1.15, 1.35), 135.0) == "completed"


def test_runs_under_other_seeds_are_not_compared_with_the_search(tmp_path):
    asked = make(space(WIDE | HYPERVOLUME | {"fixed": WIDE["fixed"] | {"precision": "nf4"}}), n_trials=1)
    desk = Desk(tmp_path, asked)
    for _ in range(2):
        falls(desk, (4.0, 3.0, 2.0, 1.0), 100.0)
    desk.finish(lambda task: completes(task, loss=0.01))
    assert sum(trial.origin == "baseline replicate" for trial in desk.ledger.trials()) == 2
    (device,) = desk.rule.own._devices.values()
    assert device.front[:, -1].tolist() == [1.0]


def test_a_resumed_sweep_knows_of_ends_that_added_nothing_what_the_first_one_knew(pairs):
    for n in range(4):
        assert falls(pairs, (3.6, 2.7, 1.7, 1.5 + n / 10), 125.0) == "pruned"
    curves, folder, asked = pairs.rule.own._curves, pairs.folder, pairs.settings
    pairs.crash()
    again = Desk(folder, asked).rule.own._curves
    history = (measurement(1, 3.0), measurement(2, 2.5))
    for one in (history[:1], history):
        assert again.hopeful(one, cost()).tolist() == pytest.approx(curves.hopeful(one, cost()).tolist())


def test_the_sampler_is_told_where_a_stopped_trial_would_have_come_to(desk):
    falls(desk, (9.0, 2.0, 1.0, 0.1), 125.0)
    last = desk.study.trials[-1]
    assert last.state.name == "COMPLETE"
    assert last.values[0] == 125.0
    curves = desk.rule.own._curves
    assert last.values[2] == pytest.approx(curves.typical((measurement(1, 9.0),), cost())[2])
    assert desk.ledger.entry(desk.asked[-1].key).result.state == "pruned"


def test_where_a_similarity_is_an_objective_a_stopped_trial_s_end_is_not_guessed(tmp_path):
    objectives = ("peak_memory_mib", "embedding_cosine")
    desk = Desk(tmp_path, make(space(WIDE | HYPERVOLUME), objectives=objectives))
    for end, mib in ((2.0, 100.0), (1.5, 110.0), (1.2, 120.0), (1.0, 130.0)):
        falls(desk, (2 * end, 1.6 * end, 1.2 * end, end), mib)
    assert falls(desk, (9.0, 2.0, 1.0, 0.1), 125.0) == "pruned"
    assert desk.study.trials[-1].state.name == "PRUNED"


def test_a_trial_that_came_back_to_a_rung_after_a_fault_counts_once():
    rule = HypervolumeStop(RULE, 8, DEFAULT)
    for _ in range(2):
        assert rule.at_rung("a", measurement(1, 2.0), cost(), may_stop=True) is None
    assert rule.at_end("a", measurement(8, 1.0), cost(), may_stop=False) is None
    assert [len(curves) for curves in rule._curves._curves.values()] == [1]
