"""Which running trial successive halving stops, and that a sweep stops none that others need."""

from orchestrator.ledger.task import TaskReport
from tests.support.sweeps import ASHA, GRID, Desk, completes, make, space

SIXTEEN = GRID | {
    "parameters": {"rank": {"values": [1, 2, 3, 4, 5, 6]}},
    "fixed": {"alpha": 8, "max_steps": 8, "precision": "16bit"},
}


def steps_of(desk: Desk, loss: float, *, protect: bool = False) -> str:
    """Run one new trial at a constant loss; returns its final state."""
    trial_id = desk.take(lambda task: completes(task, loss=loss))
    if protect:
        desk.driver.agenda.protected.add(desk.asked[-1].key)
    desk.end(trial_id)
    return desk.states[desk.asked[-1].key]


def test_a_clearly_worse_late_trial_is_stopped_at_the_first_rung_with_a_reason(tmp_path):
    desk = Desk(tmp_path, make(space(SIXTEEN, early_terminate=ASHA), asynchronous=True))
    for _ in range(3):
        steps_of(desk, 1.0)
    assert steps_of(desk, 9.0) == "pruned"
    trial = desk.ledger.entry(desk.asked[-1].key).result
    assert [m.step for m in trial.history] == [1]
    assert "9.0000 nats at step 1" in trial.reason


def test_a_better_trial_is_not_stopped(tmp_path):
    desk = Desk(tmp_path, make(space(SIXTEEN, early_terminate=ASHA), asynchronous=True))
    for loss in (3.0, 2.5, 2.0):
        assert steps_of(desk, loss) == "completed"


def test_a_protected_trial_is_never_stopped(tmp_path):
    desk = Desk(tmp_path, make(space(SIXTEEN, early_terminate=ASHA), asynchronous=True))
    for _ in range(3):
        steps_of(desk, 1.0)
    assert steps_of(desk, 9.0, protect=True) == "completed"


def test_without_early_termination_nothing_is_stopped(tmp_path):
    desk = Desk(tmp_path, make(space(SIXTEEN), asynchronous=True))
    assert [steps_of(desk, loss) for loss in (1.0, 1.0, 9.0)] == ["completed"] * 3


def test_no_trial_is_stopped_before_its_least_share_of_steps(tmp_path):
    late = {"type": "asha", "eta": 2, "min_share": 0.5}
    desk = Desk(tmp_path, make(space(SIXTEEN, early_terminate=late), asynchronous=True))
    for _ in range(3):
        steps_of(desk, 1.0)
    assert steps_of(desk, 9.0) == "pruned"
    assert [m.step for m in desk.ledger.entry(desk.asked[-1].key).result.history] == [1, 2, 4]


def test_a_report_without_a_loss_is_passed_on(tmp_path):
    desk = Desk(tmp_path, make(space(SIXTEEN, early_terminate=ASHA), asynchronous=True))
    desk.do(lambda task: iter([TaskReport(state="oom", reason="no memory")]))
    assert list(desk.states.values()) == ["oom"]


def test_where_steps_are_searched_the_longest_trials_are_not_stopped_for_their_length(tmp_path):
    searched = SIXTEEN | {
        "parameters": {"max_steps": {"values": [2, 16]}, "rank": {"values": [1, 2]}},
        "fixed": {"alpha": 8, "precision": "16bit"},
    }
    desk = Desk(tmp_path, make(space(searched, early_terminate=ASHA), asynchronous=True))
    assert [steps_of(desk, loss) for loss in (1.0, 1.0, 1.0, 0.5)] == ["completed"] * 4


def test_a_trial_in_the_better_half_at_each_rung_is_never_stopped_and_the_worst_never_ends(tmp_path):
    desk = Desk(tmp_path, make(space(SIXTEEN, early_terminate=ASHA), asynchronous=True), n_slots=6)
    running = {desk.take(lambda task: completes(task, loss=float(task.config.rank))): n for n in range(1, 7)}
    while desk.running:  # all reach each rung before any goes on
        for trial_id in sorted(desk.running, key=running.get):
            desk.step(trial_id)
    states = {t.config.rank: t.state for t in desk.ledger.trials()}
    assert states[1] == "completed"
    assert states[6] == "pruned"
