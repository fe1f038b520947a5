"""How long a sweep still takes: within a quarter and 5 s, from a third of it on, of recorded and simulated ones."""

from dataclasses import replace
from math import ceil, log
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.finalists import VERDICT_SEEDS
from orchestrator.analysis.moment import WRITING_SECONDS, Moment
from orchestrator.analysis.pace import COMPARISON_SHARE, EVALUATIONS, STALLED, Pace, makespan
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.analysis.status import status_of
from orchestrator.ledger.rows import Entry
from tests.bench.time_left import FOLDERS, N_MOMENTS
from tests.support import timelines
from tests.support.sweeps import GRID, REPO, TPE, Desk, completes, cost, evaluated_on_test, make, measurement, trial
from trainables.values.config import TrialConfig
from trainables.values.spans import Span

SHARE, SECONDS = 0.25, 5.0
WRITING = sum(WRITING_SECONDS.values())
ONE = TPE | {"parameters": {"learning_rate": TPE["parameters"]["learning_rate"]}, "fixed": {"rank": 4, "alpha": 8}}
ONE = ONE | {"fixed": ONE["fixed"] | {"precision": "16bit", "max_steps": 8}, "method": "random"}
durations = st.lists(st.floats(0.0, 100.0), max_size=12)


def left_at(now, entries, settings, spans=(), began_at=0.0):
    """Seconds until the last task has ended, as a status of these rows has it."""
    trials = [entry.result for entry in entries]
    ended = any(not one.is_of_search or one.test_evaluation for one in trials)
    found = status_of(
        trials, settings, ended=ended, moment=Moment(now=now, began_at=began_at, pace=Pace.of(entries, now, spans))
    )
    return None if found.seconds_left is None else found.seconds_left - WRITING


def assert_close(claims, end, begin=0.0):
    """From a third of the time on."""
    wrong = []
    for now, left in claims:
        is_off = left is None or abs(left - end + now) > SHARE * (end - now) + SECONDS
        if now - begin >= (end - begin) / 3 and is_off:
            wrong.append((round(now - begin), left and round(left), round(end - now)))
    assert claims
    assert not wrong, f"(at, said, true), in seconds: {wrong}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_it_is_known_of_the_recorded_sweeps(folder):
    sweep = SweepSnapshot.read_in(REPO / folder)
    moments, end = timelines.recorded(sweep, N_MOMENTS)
    claims = [(now, then.status(now, is_run=True).seconds_left) for now, then in moments]
    assert_close(claims, end, begin=min(one.started_at for one in sweep.trials))


def outcome(task):
    """The higher the rank the lower the loss and the more memory; 4 bits lose a little and need less."""
    is_nf4 = task.config.precision == "nf4"
    loss, mib = 2.0 - 0.05 * task.config.rank + 0.02 * is_nf4, 150.0 + task.config.rank - 50.0 * is_nf4
    return completes(task, loss=loss, costs=cost(peak_memory_mib=mib))


@pytest.mark.parametrize("n_slots", [1, 2, 4])
@pytest.mark.parametrize(
    "asked", [{"base": TPE | {"method": "random"}, "n_trials": 24}, {"base": GRID, "finalist_seeds": 4}]
)
def test_it_is_known_of_simulated_sweeps_that_go_on_as_they_began(asked, n_slots, tmp_path):
    random = Random(0)

    def seconds(task):
        """20 s a trial, 7 s a comparison, 3 s an evaluation and 17 s beside a baseline, give or take a fifth."""
        kind = task.kind + (" beside" if task.kind == "evaluate" and task.baseline_key else "")
        usual = {"train": 20.0, "compare": 7.0, "evaluate": 3.0, "evaluate beside": 17.0}[kind]
        return usual * random.uniform(0.8, 1.2)

    desk = Desk(tmp_path, make(**asked), n_slots=n_slots)
    moments = timelines.simulated(desk, outcome, seconds, load_seconds=20.0)
    claims = []
    for now, entries, spans in moments:
        left = left_at(now, entries, desk.settings, spans)
        claims.append((now, None if left is None else left + WRITING))
    assert_close(claims, moments[-1][0] + WRITING)


# --- one worker, trials that took 20 s but the first


EVALUATION = EVALUATIONS["16bit"] * COMPARISON_SHARE * 20.0
"""Seconds of one, as expected."""


def ended(number, begin, seconds=20.0, **values):
    """On one worker; rungs as the steps come."""
    config = values.pop("config", TrialConfig(precision="16bit", rank=4, alpha=8, learning_rate=1e-4 * (number + 1)))
    rungs = tuple(measurement(step, 2.0 - number / 100) for step in (25, 50, 100, 200))
    times = {"started_at": begin, "ended_at": begin + seconds, "train_seconds": seconds}
    one = trial(number, config=config, **{"history": rungs, **times, **values})
    measured = tuple(begin + seconds * rung.step / 200 for rung in one.history)
    return Entry(result=one, params={}, measured_at=measured)


def running(number, since, **values):
    return ended(number, since, state="running", history=(), ended_at=None, train_seconds=None, **values)


def test_before_a_trial_has_ended_no_time_is_claimed():
    assert left_at(2000.0, [running(0, 1000.0)], make(ONE)) is None


def test_what_a_worker_took_to_load_the_base_is_not_expected_of_its_next_trials():
    cold = ended(0, 0.0, seconds=80.0)
    late = Entry(result=cold.result, params={}, measured_at=(62.5, 65.0, 70.0, 80.0))
    settings = make(ONE, n_trials=11)
    left = left_at(80.0, [late, running(1, 80.0)], settings)
    assert left == pytest.approx(10 * 20.0 + (1 + log(11)) * EVALUATION, abs=1.0)


def test_nor_is_it_of_a_trial_that_was_measured_once():
    """A seed replicate: its steps at what its cost key says they take."""
    known = {"history": (measurement(200, 2.0),), "cost": cost(seconds_per_step=0.1), "origin": "replicate"}
    cold = ended(0, 0.0, seconds=80.0).result
    for trial_, expected in ((replace(cold, **known), 20.0), (replace(cold, **known | {"cost": None}), 80.0)):
        once = Entry(result=trial_, params={}, measured_at=(80.0,))
        assert Pace.of([once], 80.0).of_whole() == pytest.approx(expected)


def test_stopped_trials_are_expected_to_go_on_being_stopped_and_those_of_finalists_never_are():
    whole = [ended(0, 0.0), ended(1, 20.0), ended(2, 40.0)]
    short = [ended(n, 60.0 + 5 * n, 5.0, state="pruned", reason="stopped") for n in range(3, 6)]
    half = left_at(100.0, [*whole, *short], make(ONE, n_trials=16))
    more = left_at(100.0, [*whole, *short], make(ONE, n_trials=16, finalist_seeds=3))
    grown = (1 + log(16)) / (1 + log(6))
    assert half == pytest.approx(10 * 11.0 + grown * EVALUATION, abs=1.0)  # of one finalist; the first trial is no pace
    assert more - half >= 2 * 20.0


def test_runs_of_4_bit_finalists_are_expected_before_a_4_bit_trial_has_ended():
    entries, both = [ended(number, 20.0 * number) for number in range(6)], make(TPE | {"method": "random"}, n_trials=14)
    alone = make(ONE, n_trials=14)
    more = left_at(120.0, entries, both) - left_at(120.0, entries, alone)
    n_replicates = both.baseline_seeds + VERDICT_SEEDS - 1
    assert more > 20.0 * n_replicates + 0.9 * EVALUATIONS["nf4"] * COMPARISON_SHARE * 20.0


def test_once_pairs_were_compared_their_time_says_what_evaluations_will_take():
    took = {"training": 90.0, "comparison": 8.0, "cost key": 1.0}
    spans = [Span(process="worker 0", phase=phase, began=5.0, ended=5.0 + took[phase]) for phase in took]
    pace = Pace.of([ended(0, 0.0)], 20.0, spans)
    assert pace.of_evaluation("nf4") == pytest.approx(EVALUATIONS["nf4"] * 8.0)


def test_a_trial_that_was_reused_says_nothing_about_time():
    reused = ended(0, 0.0, 0.1, reason="reused from b", train_seconds=None)
    assert left_at(1.0, [reused], make(ONE)) is None


def test_a_trial_that_takes_longer_than_all_before_slows_what_is_expected_and_never_makes_it_negative():
    entries, settings = [ended(0, 0.0), ended(1, 20.0), running(2, 40.0)], make(ONE, n_trials=8)
    said = [left_at(now, entries, settings) for now in (50.0, 60.0, 100.0, 400.0)]
    assert said[1] == pytest.approx(said[0] - 10.0)
    assert said[1] < said[2] == pytest.approx(said[3])  # held up as it is, it counts as two


def test_a_sweep_takes_no_longer_than_the_hours_it_is_given():
    moment = Moment(now=40.0, spent_seconds=3000.0, pace=Pace.of([ended(0, 0.0), ended(1, 20.0)], 40.0))
    trials = [ended(0, 0.0).result, ended(1, 20.0).result]
    found = status_of(trials, make(ONE, n_trials=1000, max_hours=1.0), moment=moment)
    assert found.seconds_left == pytest.approx(600.0 + WRITING)
    assert found.share_done == pytest.approx(3000.0 / (3600.0 + WRITING))


EVALUATED = make(ONE, n_trials=4, objectives=("peak_memory_mib", "eval_loss_nats"))


def evaluated_in(*seconds):
    """Four trials on the front, the first of which were evaluated from second 80 on, one after the other."""
    whole, spans, began = [], [], 80.0
    for number in range(4):
        done = evaluated_on_test() if number < len(seconds) else None
        config = TrialConfig(precision="16bit", rank=2**number, alpha=8)
        costs = cost(peak_memory_mib=100.0 + number)
        whole.append(ended(number, 20.0 * number, config=config, cost=costs, test_evaluation=done))
    for took in seconds:
        spans.append(Span(process="worker 0", phase="test evaluation", began=began, ended=began + took))
        began += took
    return began, whole, spans


@pytest.mark.parametrize("n_done", [0, 1, 2])
def test_evaluations_tell_how_long_the_next_ones_take(n_done):
    now, whole, spans = evaluated_in(*[30.0] * n_done)
    each = 30.0 if n_done else EVALUATION
    assert left_at(now, whole, EVALUATED, spans) == pytest.approx((4 - n_done) * each)
    assert left_at(now + each / 3, whole, EVALUATED, spans) == pytest.approx((4 - n_done - 1 / 3) * each)
    held_up = left_at(now + 5 * each, whole, EVALUATED, spans)
    assert held_up == pytest.approx((3 - n_done) * STALLED * each), "what takes five times as long counts as two"


def test_one_evaluation_that_was_held_up_counts_as_two():
    now, whole, spans = evaluated_in(30.0, 30.0, 8 * 3600.0)
    assert left_at(now, whole, EVALUATED, spans) == pytest.approx((30.0 + 30.0 + 60.0) / 3)


def test_an_evaluation_that_failed_takes_no_more_time():
    now, whole, spans = evaluated_in(30.0)
    failed = replace(whole[-1].result, failed_evaluations={"evaluate": "out of memory"})
    whole[-1] = replace(whole[-1], result=failed)
    assert left_at(now, whole, EVALUATED, spans) == pytest.approx(2 * 30.0)


def test_a_resumed_sweep_does_not_take_its_start_for_an_evaluation_that_is_held_up():
    now, whole, spans = evaluated_in(30.0)
    assert left_at(now + 7200.0, whole, EVALUATED, spans, began_at=now + 7170.0) == pytest.approx(90.0)


def test_evaluations_of_which_nothing_is_known_take_no_time_and_divide_by_none():
    now, whole, spans = evaluated_in(30.0)
    still = [replace(one, result=replace(one.result, started_at=0.0, ended_at=0.0)) for one in whole]
    assert left_at(now, [replace(one, measured_at=()) for one in still], EVALUATED, spans) == 0.0


# --- workers


@given(durations, st.lists(st.floats(0.0, 50.0), min_size=1, max_size=5))
def test_workers_are_done_neither_before_the_work_allows_nor_later_than_one_job_after(jobs, free):
    total, n = sum(jobs) + sum(free), len(free)
    longest = max([*jobs, *free])
    assert max(total / n, max(free)) - 1e-6 <= makespan(free, jobs) <= total / n + longest + 1e-6


@given(st.integers(1, 8), st.integers(0, 20), st.floats(0.1, 100.0))
def test_equal_jobs_come_in_rounds(n_workers, n_jobs, seconds):
    assert makespan([0.0] * n_workers, [seconds] * n_jobs) == pytest.approx(ceil(n_jobs / n_workers) * seconds)
