"""When a search is over, and what is kept about it: budgets, a flat front, a reference point that stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayActorError

from orchestrator.analysis.budgets import ENDED, FINISHED, SPENT, Ended, Spent, exceeded, flat, still_needed, window
from orchestrator.analysis.front import REFERENCE, counted, fixed_reference, front_of, volume_of
from orchestrator.analysis.pareto import hypervolume
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.analysis.status import status_of
from orchestrator.driver.driver import Driver
from orchestrator.driver.stopping import Stopping
from orchestrator.report.content import report_of
from orchestrator.report.render import markdown
from orchestrator.workers.faults import fault_of
from tests.support.sweeps import GRID, TPE, WORKLOAD, Desk, completes, cost, make, measurement, space, trial
from trainables.values.config import TrialConfig
from trainables.values.errors import ConfigError

ENDLESS = TPE | {"fixed": TPE["fixed"] | {"precision": "16bit"}}
ENDLESS["parameters"] = {k: v for k, v in TPE["parameters"].items() if k != "precision"}


class Hours:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def at_work(folder, asked, *, hours_per_task: float, clock: Hours | None = None, n_slots: int = 1) -> Desk:
    """A finished sweep, each of whose trials took so long, and each test evaluation a tenth of it."""
    clock = clock or Hours()
    desk = Desk(folder, asked, n_slots)
    desk.driver = Driver(asked, WORKLOAD, desk.ledger, n_slots=n_slots, clock=clock)
    while not desk.driver.finished:
        trial_id = desk.take()
        if trial_id is None:
            assert desk.driver.finished
            break
        clock.seconds += 3600 * hours_per_task * (0.1 if desk.all_asked[-1].kind == "evaluate" else 1.0)
        desk.end(trial_id)
    return desk


# --- settings

CONTRADICTIONS = {
    "money without a price": ({"max_usd": 5, "device": "cuda"}, "max_usd is 5.*give usd_per_gpu_hour"),
    "GPU-hours on a CPU": ({"max_gpu_hours": 2}, "max_gpu_hours is 2, but trials run on the CPU; give max_hours"),
    "money on a CPU": ({"max_usd": 5, "usd_per_gpu_hour": 2}, "max_usd is 5, but trials run on the CPU"),
    "a price on a CPU": ({"usd_per_gpu_hour": 2}, "usd_per_gpu_hour is 2, but"),
    "too few trials to be flat": ({"stop_when_flat": True, "n_trials": 4}, "stop_when_flat.*n_trials is 4"),
    "no time": ({"max_hours": 0}, "max_hours.*got 0"),
    "endless time": ({"max_hours": float("inf")}, "max_hours"),
    "negative money": ({"max_usd": -1, "device": "cuda"}, "max_usd.*got -1"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_budget_that_contradicts_another_setting_is_refused_by_name(case):
    values, message = CONTRADICTIONS[case]
    with pytest.raises(ConfigError, match=message):
        make(**values)


def test_all_budgets_together_are_fine_on_a_gpu():
    asked = make(device="cuda", max_gpu_hours=2, max_hours=1, max_usd=5, usd_per_gpu_hour=2.5, stop_when_flat=True)
    assert asked.max_usd == 5


# --- the pure rules

LIMITS = st.none() | st.floats(0.1, 10)


@given(LIMITS, LIMITS, LIMITS, st.floats(0, 10), st.floats(0, 10), st.floats(0, 5))
def test_a_budget_is_reached_exactly_when_what_is_spent_and_needed_is_not_under_it(gpu, wall, usd, g, w, more):
    asked = make(device="cuda", max_gpu_hours=gpu, max_hours=wall, max_usd=usd, usd_per_gpu_hour=2.0)
    spent, needs = Spent(device_seconds=3600 * g, wall_seconds=3600 * w), Spent(device_seconds=3600 * more)
    used = [(gpu, g + more), (wall, w), (usd, 2 * (g + more))]
    expected = any(limit is not None and value > limit * (1 + 1e-9) for limit, value in used)
    close = any(limit is not None and abs(value - limit) <= 1e-9 * limit for limit, value in used)
    assert close or (exceeded(asked, spent, needs) is not None) == expected


def test_the_reason_names_the_budget_and_says_what_was_used():
    asked = make(device="cuda", max_usd=5, usd_per_gpu_hour=2.0)
    assert exceeded(asked, Spent(device_seconds=3600), Spent()) is None
    over = exceeded(asked, Spent(device_seconds=3 * 3600), Spent())
    assert over == Ended(why="max_usd", text="the budget of 5 USD (max_usd) is spent; used 6")
    soon = exceeded(asked, Spent(device_seconds=2 * 3600), Spent(device_seconds=1800))
    assert "no room for another trial" in soon.text


@pytest.mark.parametrize(("n", "expected"), [(0, 8), (80, 8), (81, 9), (1000, 100)])
def test_growth_is_looked_at_over_8_trials_or_a_tenth(n, expected):
    assert window(n) == expected


def losses(values):
    """16-bit trials that ended one after the other, each a config of its own, with these (loss, memory)."""
    return [
        trial(
            n,
            config=TrialConfig(precision="16bit", rank=n + 1, alpha=8),
            history=(measurement(200, loss),),
            cost=cost(peak_memory_mib=mib),
            ended_at=float(n),
            started_at=float(n),
        )
        for n, (loss, mib) in enumerate(values)
    ]


PAIRS = st.lists(st.tuples(st.sampled_from([1.0, 1.5, 2.0, 2.01]), st.sampled_from([1.0, 2.0, 3.0])), max_size=24)
FLAT = make(stop_when_flat=True, objectives=("eval_loss_nats", "peak_memory_mib"))


@given(PAIRS)
def test_flat_is_less_than_1_percent_over_the_last_trials(values):
    found, corner = losses(values), (4.0, 6.0)
    n_last = max(8, -(-len(values) // 10))
    now, before = (
        hypervolume(part, corner) if part else 0.0 for part in (values, values[: max(0, len(values) - n_last)])
    )
    expected = len(values) > n_last and now > 0 and (now - before) / now < 0.01
    assert (flat(found, FLAT, corner) is not None) == expected


def test_a_front_is_not_flat_before_it_is_asked_for_nor_while_there_is_none():
    same = losses([(2.0, 1.0)] * 20)
    assert flat(same, FLAT, (4.0, 6.0)).why == "flat"
    assert "0 % over the last 8 completed trials" in flat(same, FLAT, (4.0, 6.0)).text
    assert flat(same, make(objectives=FLAT.objectives), (4.0, 6.0)) is None
    assert flat(same, FLAT, None) is None
    assert flat(same, FLAT, (1.0, 1.0)) is None, "all lie beyond the reference point"


# --- the reference point


@given(PAIRS.filter(bool))
def test_the_fixed_reference_lies_beyond_every_trial_that_fixed_it_by_half_their_worst(values):
    found = losses(values)
    corner = fixed_reference(found, FLAT)
    for column, value in enumerate(corner):
        assert value >= 1.5 * max(row[column] for row in values) - 1e-9
    assert front_of(found, FLAT, corner).reference_point == corner
    assert front_of(found, FLAT, corner).hypervolume == pytest.approx(hypervolume(values, corner))


def test_a_maximised_objective_has_its_reference_below_its_worst():
    asked = make(objectives=("embedding_cosine", "eval_loss_nats"))
    corner = fixed_reference([trial(0)], asked)
    assert corner == (0.5, 3.0)
    assert volume_of(counted([trial(0)], asked), asked, corner) == pytest.approx(0.5 * 1.0)


def test_no_trial_that_counts_fixes_no_reference():
    assert fixed_reference([], FLAT) is None
    assert fixed_reference([trial(0, state="failed")], FLAT) is None


def test_the_reference_is_fixed_by_the_first_5_trials_and_never_changes(tmp_path):
    desk = Desk(tmp_path, make(space(ENDLESS), n_trials=12, asynchronous=True), 1)
    seen = []
    for loss in (2.0, 2.0, 2.0, 2.0, 2.0, 9.0, 1.0):
        desk.do(lambda task, loss=loss: completes(task, loss=loss))
        seen.append(desk.ledger.fact(REFERENCE))
    assert seen[:4] == [None] * 4
    assert seen[4] == [1.5, 1.5, 3.0]
    assert seen[5:] == [seen[4]] * 2
    desk.crash()
    resumed = Desk(tmp_path, desk.settings, 1)
    resumed.finish()
    assert resumed.ledger.fact(REFERENCE) == seen[4]
    front = front_of(resumed.ledger.trials(), resumed.settings, resumed.ledger.fact(REFERENCE))
    assert list(front.reference_point) == seen[4]


def test_a_sweep_of_fewer_trials_fixes_its_reference_when_the_search_ends(tmp_path):
    desk = Desk(tmp_path, make(space(ENDLESS), n_trials=2), 1)
    desk.finish()
    assert desk.ledger.fact(REFERENCE) == [1.5, 1.5, 3.0]


# --- sweeps


def test_a_search_ends_while_its_budget_has_room_for_what_finalists_need(tmp_path):
    asked = make(space(ENDLESS), max_hours=20)
    desk = at_work(tmp_path, asked, hours_per_task=1.0)
    ended = Ended.from_fact(desk.ledger.fact(ENDED))
    assert ended.why == "max_hours"
    n_searched = sum(t.origin == "search" for t in desk.ledger.trials())
    assert 5 <= n_searched < 20
    assert desk.ledger.fact(SPENT)["wall_seconds"] / 3600 <= 20
    assert desk.ledger.fact(FINISHED) is True
    evaluated = [task for task in desk.all_asked if task.kind == "evaluate"]
    assert evaluated


def test_a_budget_that_is_overdrawn_begins_no_seed_replicates_and_still_judges(tmp_path):
    nf4 = make(GRID | {"parameters": {"rank": {"values": [1, 2, 4]}}, "fixed": GRID["fixed"] | {"precision": "nf4"}},
               max_hours=1.0)  # fmt: skip
    desk = at_work(tmp_path, nf4, hours_per_task=5.0)
    assert {t.origin for t in desk.ledger.trials()} == {"search", "baseline"}
    assert desk.all_asked[-1].kind == "evaluate"


def test_gpu_hours_count_every_task_by_its_share_of_a_gpu(tmp_path):
    asked = make(space(ENDLESS), n_trials=3, device="cuda", gpus_per_trial=0.5)
    desk = at_work(tmp_path, asked, hours_per_task=1.0)
    spent = Spent(**desk.ledger.fact(SPENT))
    assert [task.kind for task in desk.all_asked] == ["train"] * 3 + ["evaluate"] * 3
    assert spent.device_seconds == pytest.approx(0.5 * 3600 * 3.3)
    assert spent.wall_seconds == pytest.approx(3600 * 3.3)


def test_a_task_that_waits_for_its_worker_costs_nothing(tmp_path):
    clock, asked = Hours(), make(space(ENDLESS))
    desk = Desk(tmp_path, asked)
    desk.driver = Driver(asked, WORKLOAD, desk.ledger, n_slots=2, clock=clock)
    task = desk.driver.next_task()
    clock.seconds += 3600.0
    desk.driver.ended(task, fault_of(RayActorError()))
    assert Spent(**desk.ledger.fact(SPENT)) == Spent(device_seconds=0.0, wall_seconds=3600.0)


def test_what_was_spent_before_a_resume_counts(tmp_path):
    asked = make(space(ENDLESS), max_hours=20)
    first = Desk(tmp_path, asked, 1)
    first.ledger.set_fact(SPENT, {"device_seconds": 0.0, "wall_seconds": 21 * 3600.0})
    first.crash()
    resumed = at_work(tmp_path, asked, hours_per_task=1.0)
    assert resumed.all_asked == []
    assert Ended.from_fact(resumed.ledger.fact(ENDED)).why == "max_hours"


def test_a_search_whose_front_is_flat_ends_and_a_resume_does_not_open_it_again(tmp_path):
    asked = make(space(ENDLESS), stop_when_flat=True, asynchronous=True)
    desk = Desk(tmp_path, asked, 1)
    desk.finish()
    assert Ended.from_fact(desk.ledger.fact(ENDED)).why == "flat"
    assert sum(t.origin == "search" for t in desk.ledger.trials()) == 9
    desk.crash()
    resumed = Desk(tmp_path, asked, 1)
    assert resumed.finish() == []


@pytest.mark.parametrize(
    ("base", "n_trials", "why"), [(GRID, 100, "space"), (GRID, 2, "trials"), (ENDLESS, 3, "trials")]
)
def test_why_a_search_ended_is_kept_and_said_in_the_report(base, n_trials, why, tmp_path):
    desk = Desk(tmp_path, make(space(base), n_trials=n_trials))
    desk.finish()
    ended = Ended.from_fact(desk.ledger.fact(ENDED))
    assert ended.why == why
    assert ended.text in markdown(report_of(SweepSnapshot.of(desk.settings, desk.ledger)), {})


def test_a_sweep_ended_by_its_budget_is_finished_to_status_and_report(tmp_path):
    desk = at_work(tmp_path, make(space(ENDLESS), max_hours=20), hours_per_task=1.0)
    found = status_of(desk.ledger.trials(), desk.settings, ended=True, finished=True)
    assert found.n_done == found.n_expected
    assert report_of(SweepSnapshot.of(desk.settings, desk.ledger)).finished
    assert "not finished" not in markdown(report_of(SweepSnapshot.of(desk.settings, desk.ledger)), {})


def test_an_interrupted_sweep_has_no_reason_yet(tmp_path):
    desk = Desk(tmp_path, make(space(ENDLESS), n_trials=5))
    desk.do()
    assert desk.ledger.fact(ENDED) is None
    assert Stopping(desk.settings, desk.ledger, 1).ended is None


def test_seed_replicates_are_counted_at_a_trial_each_and_test_evaluations_at_a_tenth():
    asked = make(device="cuda", gpus_per_trial=0.5)
    needs = still_needed(asked, seconds_per_trial=10.0, n_runs=4, n_evaluations=10, n_slots=2)
    assert needs == Spent(device_seconds=25.0, wall_seconds=25.0)
    assert still_needed(asked, seconds_per_trial=0.0, n_runs=4, n_evaluations=0, n_slots=2) == Spent()


def test_what_a_task_spent_before_a_crash_counts_up_to_its_last_report(tmp_path):
    asked = make(space(TPE), max_hours=1000.0)
    desk = Desk(tmp_path, asked, n_slots=1)
    for _ in range(3):
        name = desk.take()
        desk.skipped_seconds += 3000.0
        desk.step(name)
        desk.crash()
        desk = Desk(tmp_path, asked, n_slots=1)
    assert Spent(**desk.ledger.fact(SPENT)).device_seconds == pytest.approx(9000.0, rel=0.01)
