"""The plug-ins between the driver and Ray Tune, with Tune's own trials."""

import pytest
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from orchestrator.driver.ray_tune import TUNES_OWN, TaskCallback, TaskScheduler, TaskSearcher, TaskStopper, TuneTasks
from orchestrator.workers.faults import fault_of
from orchestrator.workers.warm import ASKED_SECONDS, Workers, resources_of
from tests.support.sweeps import GRID, Desk, completes, make, space


@pytest.fixture
def desk(tmp_path) -> Desk:
    return Desk(tmp_path, make(space(GRID), n_trials=1))


@pytest.fixture
def tasks(desk) -> TuneTasks:
    return TuneTasks(lambda: (desk.driver, {}), Workers({"cpu": 1.0}))


class Tune:
    """What Workers see of Tune's controller.

    Attributes:
        num_live_actors: processes that Ray was asked for.
    """

    num_live_actors = 0

    def __init__(self) -> None:
        self._tune_controller = self._actor_manager = self._actor_cache = self

    def increase_max(self, resources) -> None:
        """Nothing is kept here."""

    def hands(self, tasks, searcher, trial_id):
        """What the searcher suggests; of it a trial is made, as Tune does."""
        config = searcher.suggest(trial_id)
        if config is not None:
            trial = Trial("stub", stub=True, trial_id=trial_id)
            trial.update_resources(resources_of(config))
            TaskScheduler(tasks).on_trial_add(self, trial)
        return config


def results(reports):
    """What Tune makes of a worker's steps."""
    for report in reports:
        yield {"report": report, "done": report.is_last, "training_iteration": 1, "pid": 1, "time_total_s": 1.0}


def test_of_a_trial_that_ended_tune_keeps_nothing_that_the_ledger_has(desk, tasks):
    """Tune keeps every Trial to the end of a sweep, with its config and windows over each number it reported."""
    searcher, scheduler, callback = TaskSearcher(tasks, 0, {}), TaskScheduler(tasks), TaskCallback(tasks)
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
    searcher = TaskSearcher(tasks, 0, {})
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
    searcher = TaskSearcher(tasks, 0, {})
    lost = searcher.suggest("first")["task"]
    tasks.faults["first"] = fault_of(RayActorError())  # as the scheduler notes what Tune kept of it
    searcher.on_trial_complete("first", error=True)
    assert desk.states[lost.key] == "queued"
    desk.skipped_seconds += 60
    assert searcher.suggest("again")["task"].name == lost.name


def starting(desk, n_starts):
    """Tune, tasks and a searcher of which so many workers start before there is a driver; and how often it began."""
    begun = []

    def begin():
        begun.append(True)
        return desk.driver, {"workload": "w"}

    tasks = TuneTasks(begin, Workers({"cpu": 1.0}))
    return Tune(), tasks, TaskSearcher(tasks, n_starts, {"device": "cpu"}), begun


def test_workers_start_before_the_sweep_begins_and_it_begins_once_ray_was_asked_for_them(desk):
    tune, tasks, searcher, begun = starting(desk, 2)
    starts = [tune.hands(tasks, searcher, name) for name in "ab"]
    assert [(start["task"], start["device"]) for start in starts] == [(None, "cpu")] * 2
    assert starts[0]["worker"] != starts[1]["worker"]
    tune.num_live_actors = 1
    assert tune.hands(tasks, searcher, "c") is None
    assert not begun
    tune.num_live_actors = 2
    assert tune.hands(tasks, searcher, "d") is None, "no third worker while two are starting"
    assert begun == [True]
    callback = TaskCallback(tasks)
    for name in "ab":
        trial = Trial("stub", stub=True, trial_id=name)
        callback.on_trial_start(0, [], trial)
        callback.on_trial_result(0, [], trial, {"done": True})
        searcher.on_trial_complete(name, {"done": True})
    first = tune.hands(tasks, searcher, "e")
    assert first["task"].kind == "train"
    assert first["workload"] == "w"
    assert first["worker"] in [start["worker"] for start in starts]
    assert begun == [True]


@pytest.mark.parametrize("is_lost", [False, True])
def test_what_has_started_or_was_lost_soon_is_not_started_again_and_again_before_the_sweep_begins(desk, is_lost):
    tune, tasks, searcher, begun = starting(desk, 2)
    for name in "ab":
        tune.hands(tasks, searcher, name)  # the second finds no place
    if not is_lost:
        TaskCallback(tasks).on_trial_start(0, [], Trial("stub", stub=True, trial_id="a"))
    tune.num_live_actors = 0 if is_lost else 1
    searcher.on_trial_complete("a", {"done": True}, error=is_lost)
    config = tune.hands(tasks, searcher, "c")
    assert config is None if is_lost else config["task"].kind == "train"
    assert begun == [True] * (not is_lost)


def test_a_worker_that_could_not_start_keeps_no_task_waiting(desk):
    tune, tasks, searcher, _ = starting(desk, 1)
    lost = tune.hands(tasks, searcher, "a")["worker"]
    tune.num_live_actors = 1
    assert tune.hands(tasks, searcher, "b") is None
    tasks.faults["a"] = fault_of(RayActorError())
    searcher.on_trial_complete("a", error=True)
    config = tune.hands(tasks, searcher, "c")
    assert config["task"].kind == "train"
    assert config["worker"] != lost


def test_what_has_no_place_does_not_keep_the_sweep_from_beginning(desk):
    clock = [0.0]
    tasks = TuneTasks(lambda: (desk.driver, {}), Workers({"cpu": 1.0}, clock=lambda: clock[0]))
    tune, searcher = Tune(), TaskSearcher(tasks, 1, {})
    tune.hands(tasks, searcher, "a")
    assert tune.hands(tasks, searcher, "b") is None
    assert not tasks.has_begun
    clock[0] = ASKED_SECONDS + 0.1
    tune.hands(tasks, searcher, "c")
    assert tasks.has_begun


def test_tune_is_ended_with_the_sweep_though_a_worker_that_was_to_start_has_no_place(desk):
    tune, tasks, searcher, _ = starting(desk, 1)
    stopper = TaskStopper(tasks)
    tune.hands(tasks, searcher, "a")
    assert not stopper.stop_all(), "it has not begun"
    tune.num_live_actors = 1
    assert tune.hands(tasks, searcher, "b") is None
    assert not stopper.stop_all()
    desk.finish()
    desk.driver.next_task()
    assert stopper.stop_all()
    assert not stopper("a", {})
