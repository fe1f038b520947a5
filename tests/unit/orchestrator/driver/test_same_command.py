"""Of two sweeps by one command, which proposal is the first that differs; and times that a rerun takes over."""

from dataclasses import asdict, replace

import pytest

from orchestrator.driver import reuse, same_command
from orchestrator.ledger import Ledger
from orchestrator.settings import stored, sweep_folder
from tests.support.sweeps import GRID, WORKLOAD, Desk, completes, cost, make, measurement, space, trial
from trainables.cost.device import versions

DEVICE = "NVIDIA H100"


def swept(root, name: str, outcome=completes, **asked) -> Desk:
    """A finished sweep as orchestrator.driver.sweep leaves it."""
    settings = make(GRID, name=name, **asked)
    desk = Desk(sweep_folder(name, root), settings)
    desk.ledger.set_fact("workload", asdict(WORKLOAD))
    desk.ledger.set_fact(stored.ASKED, settings.model_dump_json())
    desk.finish(outcome)
    return desk


def noted(desk: Desk, root) -> str | None:
    return same_command.note(desk.settings, desk.ledger, root)


def test_a_rerun_says_that_it_came_to_the_same_whatever_its_name_and_reuse(tmp_path):
    assert noted(swept(tmp_path, "a"), tmp_path) is None
    again = swept(tmp_path, "b", reuse=False)
    assert noted(again, tmp_path) == "the same configs and losses as in sweep a, which the same command ran"
    assert again.ledger.fact(same_command.SAME_COMMAND) == noted(again, tmp_path)


@pytest.mark.parametrize("other", [{"seed": 1}, {"asynchronous": True}, {"n_trials": 3}])
def test_another_command_is_not_compared(other, tmp_path):
    swept(tmp_path, "a")
    assert noted(swept(tmp_path, "b", **other), tmp_path) is None


def test_the_first_proposal_that_differs_is_named(tmp_path):
    swept(tmp_path, "a")
    other = swept(tmp_path, "b", lambda task: completes(task, loss=2.5 if task.config.rank == 2 else 2.0))
    expected = "trial 1 is the first that differs from sweep a, which the same command ran: its losses"
    assert noted(other, tmp_path) == expected


def test_what_differs_is_said():
    one = trial(0)
    shorter = replace(one, state="pruned", history=(measurement(25, 2.0),))
    for our, what in (
        (replace(one, key="f" * 64), "its config"),
        (shorter, "completed at step 200, here pruned at step 25"),
    ):
        assert same_command.in_words("a", [one], [our]).endswith(f": {what}")
    assert same_command.in_words("a", [one, one], [one]).endswith("ended after 2 configs, here 1")


def on_gpu(task, *, seconds: float):
    for report in completes(task, costs=cost(device=DEVICE, seconds_per_step=seconds)):
        yield replace(report, environment={"device": DEVICE, **versions()} if report.is_last else {})


@pytest.mark.parametrize(
    ("asked", "device", "is_taken"),
    [
        ({"device": "cuda"}, DEVICE, True),
        ({"device": "cuda", "reuse": False}, DEVICE, False),
        ({"device": "cuda"}, "NVIDIA T4", False),
        ({"device": "cpu"}, DEVICE, False),
    ],
)
def test_a_rerun_is_told_the_time_that_the_first_run_measured_on_the_same_kind_of_gpu(
    asked, device, is_taken, tmp_path
):
    first = swept(tmp_path, "a", lambda task: on_gpu(task, seconds=0.1))
    first.ledger.close()
    ledger = Ledger(sweep_folder("b", tmp_path) / "ledger.db")
    reuse.keep_costs(make(space(), name="b", **asked), WORKLOAD, tmp_path, {device}, ledger)
    for done in Ledger(first.ledger.path, read_only=True).trials():
        found = ledger.cost(done.config.cost_key)
        assert (found == done.cost) if is_taken else (found is None)
