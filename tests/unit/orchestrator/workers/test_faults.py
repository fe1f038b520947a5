"""Faults by kind: what is tried again, when, how often, and when a sweep gives itself up."""

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError

from orchestrator.driver.retries import BACK_OFF_SECONDS, MIN_FAILED, Retries, too_many
from orchestrator.workers.faults import fault_of
from orchestrator.workers.versions import IncompatibleNode
from tests.support.sweeps import GRID, TPE, Desk, breaks, completes, make, space
from trainables.values.errors import DeviceLost


def raised(error: Exception) -> RayTaskError:
    """As Ray hands an exception of a task on."""
    return RayTaskError("train", f"Traceback ...\n{type(error).__name__}: {error}", error)


WORKER_OOM = "Task was killed due to the node running low on memory. Memory on the node was 15 GB / 16 GB (0.95)."
NOT_IMPORTED = "The actor with name SweepTrainable failed to import on the worker. This may be because needed library\n"
"""As Ray begins, whatever follows; the reason is the last line."""
KINDS = {
    "a worker process that died": (RayActorError(), "worker", "worker process was lost"),
    "a lost node": (RayActorError(error_msg="The actor died because its node has died."), "node", "node was lost"),
    "a node's own error": (NodeDiedError("gone"), "node", "node was lost"),
    "a kill by Ray for the host's memory": (OutOfMemoryError(WORKER_OOM), "host memory", "the host (not the GPU)"),
    "such a kill as a dead actor": (RayActorError(error_msg=WORKER_OOM), "host memory", "the host (not the GPU)"),
    "an exception in the worker": (raised(KeyError("nothing")), "own", "KeyError: 'nothing'"),
    "a dead actor that the worker asked": (raised(RayActorError()), "worker", "worker process was lost"),
    "an exception while the worker was set up": (
        ActorDiedError.from_task_error(raised(ImportError("no module"))),
        "own",
        "ImportError: no module",
    ),
    "a worker that refused its node": (
        ActorDiedError.from_task_error(raised(IncompatibleNode("node a has torch 1.2.3, the driver has 2.13.0"))),
        "incompatible node",
        "its node was unfit: node a has torch 1.2.3, the driver has 2.13.0",
    ),
    "a worker that a node lacks a package for": (
        ActorDiedError.from_task_error(raised(RuntimeError(f"{NOT_IMPORTED}ImportError: no peft"))),
        "node",
        "its node lacks what a worker needs: ImportError: no peft",
    ),
    "a CUDA error": (raised(RuntimeError("CUDA out of memory")), "own", "CUDA out of memory"),
    "a CUDA error that stays": (
        raised(DeviceLost("AcceleratorError: CUDA error: device-side assert triggered\nCompile with ...")),
        "device",
        "its GPU was of no more use to its process: AcceleratorError: CUDA error: device-side assert triggered",
    ),
}


@pytest.mark.parametrize("case", KINDS)
def test_a_fault_has_its_kind_and_says_so(case):
    error, kind, words = KINDS[case]
    fault = fault_of(error)
    assert fault.kind == kind
    assert words in fault.text
    assert "\n" not in fault.text


def test_an_unknown_error_is_a_trials_own_and_never_tried_again():
    assert fault_of(None).is_own
    assert fault_of(None, "Failure # 1\nValueError: nothing").text.endswith("ValueError: nothing")


def test_a_lost_worker_is_tried_again_after_a_while_and_twice_at_most(tmp_path):
    desk = Desk(tmp_path, make(GRID), n_slots=1)
    lost = desk.take()
    for pause in BACK_OFF_SECONDS:
        desk.lose(lost)
        assert desk.states[desk.all_asked[0].key] == "queued"
        desk.skipped_seconds += pause - 1.5  # asking takes a second
        other = desk.take()
        assert desk.all_asked[-1].key != desk.all_asked[0].key, "it waits; others go on"
        desk.end(other)
        lost = desk.take_again("task0")
    desk.lose(lost)
    assert desk.ledger.entry(desk.all_asked[0].key).result.state == "failed"
    desk.finish()
    assert Counter(desk.states.values()) == {"failed": 1, "completed": 5}
    assert "lost, the 3rd time" in desk.candidates[0].reason


def test_a_trial_that_is_tried_again_ends_like_any_other(tmp_path):
    desk = Desk(tmp_path, make(GRID), n_slots=1)
    lost = desk.take()
    desk.step(lost)
    desk.lose(lost)
    assert [m.step for m in desk.ledger.entry(desk.all_asked[0].key).result.history] == [1], "its rungs stay"
    desk.finish()
    assert Counter(desk.states.values()) == {"completed": 6}
    assert Counter(task.key for task in desk.asked)[desk.all_asked[0].key] == 2


def test_the_sweep_is_not_over_while_its_last_task_waits(tmp_path):
    desk = Desk(tmp_path, make(space(parameters={"rank": {"values": [1]}}, fixed={"alpha": 1, "precision": "16bit"})))
    desk.lose(desk.take())
    assert desk.take() is None
    assert not desk.driver.finished
    desk.finish()
    assert Counter(desk.states.values()) == {"completed": 1}


def test_a_test_evaluation_is_tried_again_too(tmp_path):
    desk = Desk(tmp_path, make(space(parameters={"rank": {"values": [1]}}, fixed={"alpha": 1, "precision": "16bit"})))
    desk.do()
    lost = desk.take()
    assert desk.all_asked[-1].kind == "evaluate"
    desk.lose(lost)
    desk.end(desk.take_again(lost))
    assert desk.candidates[0].test_evaluation is not None
    assert desk.finish() == []


@pytest.mark.parametrize("state", ["oom", "diverged", "failed"])
def test_what_a_trial_did_itself_is_never_tried_again(state, tmp_path):
    desk = Desk(tmp_path, make(GRID, n_trials=1), n_slots=1)
    desk.do(partial(breaks, state=state))
    desk.skipped_seconds += 3600
    desk.finish()
    assert Counter(task.key for task in desk.asked)[desk.all_asked[0].key] == 1


def test_an_exception_that_reached_ray_fails_its_trial_at_once_with_its_words(tmp_path):
    desk = Desk(tmp_path, make(GRID))
    desk.lose(desk.take(), raised(KeyError("nothing")))
    assert desk.candidates[0].state == "failed"
    assert "KeyError: 'nothing'" in desk.candidates[0].reason


def test_a_sweep_stops_when_too_many_trials_fail_and_says_why(tmp_path):
    desk = Desk(tmp_path, make(TPE))
    for _ in range(MIN_FAILED - 1):
        desk.do(partial(breaks, state="failed"))
        assert desk.driver.stopped is None
    running = desk.take()
    desk.do(partial(breaks, state="failed"))
    assert "5 of 5 trials failed" in desk.driver.stopped
    assert "failed here" in desk.driver.stopped
    assert desk.take() is None, "nothing new begins"
    desk.end(running)  # what is at work ends
    assert desk.driver.is_over
    assert not desk.driver.finished, "resume goes on with it"


def test_it_does_not_stop_for_few_failures_nor_for_outcomes_of_the_search(tmp_path):
    fails = count()

    def outcome(task):
        every_fourth = next(fails) % 4 == 0
        return breaks(task, state="failed") if every_fourth else breaks(task, state="diverged")

    desk = Desk(tmp_path, make(TPE, n_trials=40))
    desk.finish(outcome)
    assert desk.driver.stopped is None
    assert Counter(desk.states.values())["failed"] == 10


def test_a_resumed_sweep_counts_its_failures_anew(tmp_path):
    desk = Desk(tmp_path, make(TPE, n_trials=20))
    for _ in range(MIN_FAILED):
        desk.do(partial(breaks, state="failed"))
    assert desk.driver.stopped
    desk.crash()
    resumed = Desk(tmp_path, desk.settings)
    resumed.finish(completes)
    assert resumed.driver.stopped is None
    assert Counter(t.state for t in resumed.candidates if t.origin == "search") == {"failed": 5, "completed": 15}


@given(st.integers(0, 60), st.integers(0, 60))
def test_too_many_is_more_than_30_percent_and_at_least_5(n_failed, n_others):
    n_ended = n_failed + n_others
    expected = n_failed >= 5 and 10 * n_failed > 3 * n_ended
    assert too_many(n_failed, n_ended) == expected


@given(st.lists(st.sampled_from(["lose", "own", "hand out", "wait"]), max_size=30))
def test_a_task_is_handed_out_thrice_at_most_and_never_before_its_time(actions):
    now = [0.0]
    retries, task = Retries(lambda: now[0]), ("train", "a")
    ends, due_at, running, over = 0, 0.0, True, False
    for action in actions:
        if action == "wait":
            now[0] += 1.5
        elif action == "hand out" and not running and not over and retries.is_due(task):
            assert now[0] >= due_at
            retries.handed_out(task)
            running = True
        elif action in ("lose", "own") and running:
            fault = replace(fault_of(RayActorError()), kind="own" if action == "own" else "worker")
            ends += 1
            again = retries.again(task, fault)
            assert again == (action == "lose" and ends <= len(BACK_OFF_SECONDS))
            running, over = False, not again
            due_at = now[0] + BACK_OFF_SECONDS[ends - 1] if again else 0.0
        assert retries.waiting == (not running and not over)


def test_a_secret_in_an_error_of_the_infrastructure_is_cut_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary5e1fb0c7d2a94")
    desk = Desk(tmp_path, make(GRID))
    desk.lose(desk.take(), RuntimeError("401 for hf_canary5e1fb0c7d2a94"))
    (ended,) = (trial for trial in desk.candidates if trial.state == "failed")
    assert "401 for" in ended.reason
    assert "canary" not in ended.reason
