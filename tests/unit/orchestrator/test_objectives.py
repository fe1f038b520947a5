"""Adding an objective is one entry: the front, sampler, settings, pictures, report and terminal take it from there."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from orchestrator.analysis.choice import knee
from orchestrator.analysis.front import front_of, objective_value
from orchestrator.cli.front_table import front_table
from orchestrator.objectives import OBJECTIVES
from orchestrator.pruning.rule import rule_of
from tests.support.sweeps import Desk, completes, cost, make, space

SIXTH = "reserved_memory_mib"
ASKED = (SIXTH, "eval_loss_nats")


@pytest.fixture
def sixth(monkeypatch):
    """An objective that a user adds: what the allocator reserved, of a trial's cost."""
    monkeypatch.setitem(
        OBJECTIVES,
        SIXTH,
        replace(OBJECTIVES["peak_memory_mib"], name=SIXTH, label="reserved memory", heading="reserved MiB"),
    )


def costly(task):
    return completes(task, loss=3 - task.config.rank / 10, costs=cost(reserved_memory_mib=10.0 * task.config.rank))


def test_a_sixth_objective_goes_from_one_entry_through_a_whole_sweep(sixth, tmp_path):
    asked = make(space(early_terminate={"type": "hypervolume"}), objectives=ASKED)
    desk = Desk(tmp_path, asked)
    desk.finish(costly)
    front = front_of(desk.ledger.trials(), asked)
    assert front.objectives == ASKED
    assert {objective_value(member, SIXTH) for member in front.members} == {10.0, 20.0, 40.0}
    assert objective_value(knee(front), SIXTH) == 20.0
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(front_table(front, console.width))
    assert "reserved MiB" in console.export_text()
    assert rule_of(asked.space.early_terminate, 8, ASKED) is not None


def test_without_its_entry_a_sweep_cannot_ask_for_it():
    with pytest.raises(ValueError, match=SIXTH):
        make(objectives=ASKED)
