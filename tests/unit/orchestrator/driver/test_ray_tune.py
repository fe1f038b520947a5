"""The plug-ins between the driver and Ray Tune, with Tune's own trials."""

import pytest
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from orchestrator.driver.ray_tune import TUNES_OWN, TaskCallback, TaskScheduler, TaskSearcher, TuneTasks
from orchestrator.workers.faults import fault_of
from orchestrator.workers.warm import Workers
from tests.support.sweeps import GRID, Desk, completes, make, space


@pytest.fixture
def desk(tmp_path) -> Desk:
    return Desk(tmp_path, make(space(GRID), n_trials=1))


@pytest.fixture
def tasks(desk) -> TuneTasks:
    return TuneTasks(desk.driver, Workers({"cpu": 1.0}))


def results(reports):
    """What Tune makes of a worker's steps."""
    for report in reports:
        yield {"report": report, "done": report.is_last, "training_iteration": 1, "pid": 1, "time_total_s": 1.0}


def test_of_a_trial_that_ended_tune_keeps_nothing_that_the_ledger_has(desk, tasks):
    """Tune keeps every Trial to the end of a sweep, with its config and windows over each number it reported."""
    searcher, scheduler, callback = TaskSearcher(tasks, {}), TaskScheduler(tasks), TaskCallback(tasks)
    trial = Trial("stub", stub=True)
    config = searcher.suggest(trial.trial_id)
    task = config["task"]
    trial.config, trial.evaluated_params = config, dict(config)
    callback.on_trial_start(0, [], trial)
    for result in results(completes(task)):
        if not result["done"]:  # as Tune does
            assert scheduler.on_trial_result(None, trial, result) == "CONTINUE"
        callback.on_trial_result(0, [], trial, result)
        trial.update_last_result(result)
    callback.on_trial_complete(0, [], trial)
    searcher.on_trial_complete(trial.trial_id, result)
    ended = desk.ledger.entry(task.key).result
    assert ended.state == "completed"
    assert [m.step for m in ended.history] == [1, 2, 4, 8]
    assert trial.last_result.keys() <= TUNES_OWN
    assert trial.last_result["done"]
    assert not any((trial.config, trial.evaluated_params, trial.metric_analysis, trial.metric_n_steps))


def test_tune_waits_while_something_runs_and_ends_when_the_driver_has_no_more(desk, tasks):
    searcher = TaskSearcher(tasks, {})
    task = searcher.suggest("a")["task"]
    desk.driver.began(task)
    for trial_id in "bcdefgh":
        searcher.suggest(trial_id)  # until all slots are taken
    assert searcher.suggest("i") is None
    for trial_id in "abcdefgh":
        if (task := tasks.task(trial_id)) is not None:
            for report in completes(task):
                desk.driver.report(task, report)
            searcher.on_trial_complete(trial_id, {})
    desk.finish()
    assert searcher.suggest("z") == Searcher.FINISHED


def test_a_worker_that_was_lost_has_its_task_handed_out_again(desk, tasks):
    searcher = TaskSearcher(tasks, {})
    lost = searcher.suggest("first")["task"]
    tasks.faults["first"] = fault_of(RayActorError())  # as the scheduler notes what Tune kept of it
    searcher.on_trial_complete("first", error=True)
    assert desk.states[lost.key] == "queued"
    desk.skipped_seconds += 60
    assert searcher.suggest("again")["task"].name == lost.name
