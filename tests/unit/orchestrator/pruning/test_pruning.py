"""Which running trial is stopped: the scheduler's answers, asked as Ray Tune asks."""

from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.driver.scheduler import Pruner
from orchestrator.workers.tune_trainable import Task
from search_spaces import EarlyTerminate
from tests.support.constant_loss import SIXTEEN, WIDE, shows
from tests.support.sweeps import ASHA, Desk, completes, make, space
from trainables.values.config import TrialConfig


def steps_of(desk: Desk, loss: float, *, protect: bool = False) -> str:
    """Run one new trial at a constant loss; returns its final state."""
    trial_id = desk.take(lambda task: completes(task, loss=loss))
    if protect:
        desk.pruner.protected.add(desk.asked[-1].key)
    desk.end(trial_id)
    return desk.states[desk.asked[-1].key]


def test_a_clearly_worse_late_trial_is_stopped_at_the_first_rung_with_a_reason(tmp_path):
    desk = Desk(tmp_path, make(space(SIXTEEN, early_terminate=ASHA)))
    for _ in range(3):
        steps_of(desk, 1.0)
    assert steps_of(desk, 9.0) == "pruned"
    trial = desk.ledger.entry(desk.asked[-1].key).result
    assert [m.step for m in trial.history] == [1]
    assert "9.0000 nats at step 1" in trial.reason


def test_a_better_trial_is_not_stopped(tmp_path):
    desk = Desk(tmp_path, make(space(SIXTEEN, early_terminate=ASHA)))
    for loss in (3.0, 2.5, 2.0):
        assert steps_of(desk, loss) == "completed"


def test_a_protected_trial_is_never_stopped(tmp_path):
    desk = Desk(tmp_path, make(space(SIXTEEN, early_terminate=ASHA)))
    for _ in range(3):
        steps_of(desk, 1.0)
    assert steps_of(desk, 9.0, protect=True) == "completed"


def test_without_early_termination_nothing_is_stopped(tmp_path):
    desk = Desk(tmp_path, make(space(SIXTEEN)))
    assert [steps_of(desk, loss) for loss in (1.0, 1.0, 9.0)] == ["completed"] * 3


def test_no_trial_is_stopped_before_its_least_share_of_steps(tmp_path):
    late = {"type": "asha", "eta": 2, "min_share": 0.5}
    desk = Desk(tmp_path, make(space(SIXTEEN, early_terminate=late)))
    for _ in range(3):
        steps_of(desk, 1.0)
    assert steps_of(desk, 9.0) == "pruned"
    assert [m.step for m in desk.ledger.entry(desk.asked[-1].key).result.history] == [1, 2, 4]


def test_a_comparison_is_never_stopped():
    pruner = Pruner(EarlyTerminate(**ASHA), 8)
    config = TrialConfig(precision="nf4", rank=1, alpha=1)
    answers = []
    for number, (kind, loss) in enumerate([("train", 1.0), ("train", 1.0), ("train", 9.0), ("compare", 9.0)]):
        task = Task(kind=kind, key=f"k{number}", config=config, baseline_key="t")
        tune_trial = SimpleNamespace(trial_id=f"t{number}", config={"task": task.to_dict()})
        pruner.on_trial_add(None, tune_trial)
        answers.append(pruner.on_trial_result(None, tune_trial, {"step": 1, "eval_loss_nats": loss, "done": False}))
    assert answers == ["CONTINUE", "CONTINUE", "STOP", "CONTINUE"]


def test_a_report_without_a_loss_is_passed_on(tmp_path):
    desk = Desk(tmp_path, make(space(SIXTEEN, early_terminate=ASHA)))
    desk.do(lambda task: iter([{"state": "oom", "done": True, "reason": "no memory", "environment": {}}]))
    assert list(desk.states.values()) == ["oom"]


def test_where_steps_are_searched_the_longest_trials_are_not_stopped_for_their_length(tmp_path):
    searched = SIXTEEN | {
        "parameters": {"max_steps": {"values": [2, 16]}, "rank": {"values": [1, 2]}},
        "fixed": {"alpha": 8, "precision": "16bit"},
    }
    desk = Desk(tmp_path, make(space(searched, early_terminate=ASHA)))
    assert [steps_of(desk, loss) for loss in (1.0, 1.0, 1.0, 0.5)] == ["completed"] * 4


def test_a_trial_in_the_better_half_at_each_rung_is_never_stopped_and_the_worst_never_ends(tmp_path):
    desk = Desk(tmp_path, make(space(SIXTEEN, early_terminate=ASHA)), n_slots=6)
    running = {desk.take(lambda task: completes(task, loss=float(task.config.rank))): n for n in range(1, 7)}
    while desk.running:  # all reach each rung before any goes on
        for trial_id in sorted(desk.running, key=running.get):
            desk.step(trial_id)
    states = {t.config.rank: t.state for t in desk.ledger.trials()}
    assert states[1] == "completed"
    assert states[6] == "pruned"


# --- multi-objective halving


def run_one(desk: Desk, **values) -> str:
    desk.end(desk.take(lambda task: shows(task, **values)))
    return desk.states[desk.asked[-1].key]


def test_a_trial_dominated_by_its_own_kind_is_stopped_at_the_first_rung_and_the_reason_is_kept(tmp_path):
    desk = Desk(tmp_path, make(space(WIDE)))
    assert run_one(desk, loss=1.0, mib=100.0) == "completed"
    assert run_one(desk, loss=9.0, mib=101.0) == "pruned"
    trial = desk.ledger.entry(desk.asked[-1].key).result
    assert [m.step for m in trial.history] == [1]
    assert trial.reason.startswith(
        "MOASHA: at step 1 not among the first 1 by non-dominated depth of the 2 trials in its stratum"
    )
    assert "peak_memory_mib 101" in trial.reason
    assert "eval_loss_nats 9" in trial.reason


def test_a_cheaper_a_faster_and_a_dearer_but_better_trial_all_go_on(tmp_path):
    desk = Desk(tmp_path, make(space(WIDE)))
    assert run_one(desk, loss=2.0, mib=100.0) == "completed"
    assert run_one(desk, loss=9.0, mib=99.0) == "completed"
    assert run_one(desk, loss=9.0, mib=103.0, seconds=0.5) == "completed"
    assert run_one(desk, loss=1.9, mib=104.0) == "completed"


def test_a_trial_alone_in_its_stratum_goes_on_and_the_next_of_its_kind_is_measured_against_it(tmp_path):
    desk = Desk(tmp_path, make(space(WIDE)))
    assert run_one(desk, loss=1.0, mib=100.0) == "completed"
    assert run_one(desk, loss=2.0, mib=200.0) == "completed"
    assert run_one(desk, loss=3.0, mib=200.0) == "pruned"


def test_a_protected_trial_is_never_stopped_by_halving_and_still_counts_for_others(tmp_path):
    desk = Desk(tmp_path, make(space(WIDE)))
    run_one(desk, loss=1.0, mib=100.0)
    spared = desk.take(lambda task: shows(task, loss=9.0, mib=101.0))
    desk.pruner.protected.add(desk.asked[-1].key)
    desk.end(spared)
    assert desk.states[desk.asked[-1].key] == "completed"
    assert run_one(desk, loss=8.0, mib=101.0) == "completed", "place 2 of 3"


def test_a_resumed_sweep_prunes_as_if_it_had_never_stopped(tmp_path):
    asked = make(space(WIDE))
    desk = Desk(tmp_path, asked)
    for loss in (1.0, 5.0, 6.0):
        run_one(desk, loss=loss, mib=100.0)
    desk.crash()
    resumed = Desk(tmp_path, asked)
    assert run_one(resumed, loss=9.0, mib=100.0) == "pruned"
    assert "of the 4 trials" in resumed.ledger.entry(resumed.asked[-1].key).result.reason


def test_time_within_its_noise_spares_no_trial(tmp_path):
    desk = Desk(tmp_path, make(space(WIDE)))

    def noisy(task, loss, seconds):
        for report in shows(task, loss=loss, mib=100.0, seconds=seconds):
            report["cost"] |= {"seconds_per_step_p90": seconds + 0.5}
            yield report

    states = []
    for loss, seconds in ((1.0, 1.0), (4.0, 0.1), (2.0, 0.9)):
        desk.end(desk.take(lambda task, loss=loss, seconds=seconds: noisy(task, loss, seconds)))
        states.append(desk.states[desk.asked[-1].key])
    assert states == ["completed", "completed", "pruned"]


@pytest.mark.parametrize("objectives", [("peak_memory_mib", "embedding_cosine"), ("embedding_cosine",)])
def test_where_similarity_is_an_objective_loss_stands_in_at_the_rungs(objectives, tmp_path):
    desk = Desk(tmp_path, make(space(WIDE), objectives=objectives))
    assert run_one(desk, loss=1.0, mib=100.0) == "completed"
    assert run_one(desk, loss=2.0, mib=100.0) == "pruned"


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([100, 104, 200])), min_size=1, max_size=12))
def test_no_trial_that_is_on_the_front_of_its_rung_when_it_comes_is_ever_stopped(points):
    with TemporaryDirectory() as folder:
        desk = Desk(Path(folder), make(space(WIDE), objectives=("peak_memory_mib", "eval_loss_nats")))
        seen = []
        for loss, mib in points:
            state = run_one(desk, loss=float(loss), mib=float(mib))
            beaten = any(m <= mib and other <= loss and (m, other) != (mib, loss) for m, other in seen)
            seen.append((mib, loss))
            assert state == "completed" or beaten
        least = min(mib for _, mib in points)
        alive = {
            (t.history[-1].peak_memory_mib, t.history[-1].eval_loss_nats)
            for t in desk.ledger.trials()
            if t.state == "completed"
        }
        assert least in {mib for mib, _ in alive}
        assert min(loss for loss, _ in points) in {loss for _, loss in alive}
        desk.ledger.close()
