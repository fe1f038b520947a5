"""What every stopping rule promises, whichever it is."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.objectives import DEFAULT
from orchestrator.pruning.rule import rule_of
from search_spaces import EarlyTerminate
from tests.support.sweeps import cost, measurement, trial
from trainables.values.config import rungs

TYPES = get_args(EarlyTerminate.model_fields["type"].annotation)
ALL_TYPES = pytest.mark.parametrize("name", TYPES)
STEPS = rungs(8)
TRIALS = st.lists(
    st.tuples(st.lists(st.floats(0.1, 10), min_size=4, max_size=4), st.floats(1, 100), st.booleans()), max_size=12
)
"""Of each: its loss at every rung, its peak, and whether others need it."""


def decisions(rule, trials, first: int = 0) -> list[tuple[int, str | None]]:
    """At which step each trial ended and why; one after the other."""
    found = []
    for number, (losses, mib, is_needed) in enumerate(trials, first):
        for step, loss in zip(STEPS, losses, strict=True):
            ask = rule.at_end if step == STEPS[-1] else rule.at_rung
            why = ask(f"{number:064x}", measurement(step, loss), cost(peak_memory_mib=mib), may_stop=not is_needed)
            if why is not None or step == STEPS[-1]:
                found.append((step, why))
                break
    return found


def fresh(name: str):
    return rule_of(EarlyTerminate(type=name), STEPS[-1], DEFAULT)


@ALL_TYPES
@given(trials=TRIALS)
def test_a_reason_is_a_sentence_and_whom_others_need_is_never_stopped(name, trials):
    for (step, why), (_, _, is_needed) in zip(decisions(fresh(name), trials), trials, strict=True):
        assert why != ""
        if is_needed or why is None:
            assert (step, why) == (STEPS[-1], None)


@ALL_TYPES
@given(trials=TRIALS)
def test_the_same_trials_bring_the_same_decisions(name, trials):
    assert decisions(fresh(name), trials) == decisions(fresh(name), trials)


@ALL_TYPES
@given(losses=st.lists(st.floats(0.1, 10), min_size=4, max_size=4))
def test_the_first_trial_of_a_sweep_is_never_stopped(name, losses):
    assert decisions(fresh(name), [(losses, 50.0, False)]) == [(STEPS[-1], None)]


@ALL_TYPES
def test_what_the_ledger_holds_of_every_state_can_be_learned(name):
    rule = fresh(name)
    for number, state in enumerate(("completed", "pruned", "oom", "diverged", "failed", "refused", "queued")):
        its_cost = cost() if state in ("completed", "pruned") else None
        history = (measurement(1, 2.0), measurement(8, 1.0)) if its_cost else ()
        rule.learn(trial(number, state=state, history=history, cost=its_cost))
    assert len(decisions(rule, [([2.0, 1.5, 1.2, 1.0], 1.0, False)], first=9)) == 1


@pytest.mark.parametrize(
    ("name", "objectives", "warns"),
    [("asha", DEFAULT, True), ("asha", ("eval_loss_nats",), False), ("hypervolume", DEFAULT, False)],
)
def test_asha_over_several_objectives_is_warned_of(name, objectives, warns, caplog):
    rule_of(EarlyTerminate(type=name), STEPS[-1], objectives)
    assert ("asha knows one objective" in caplog.text) == warns


def test_a_space_can_ask_for_every_rule_there_is():
    assert {type(fresh(name)).__name__ for name in TYPES} == {"HypervolumeStop", "Asha", "KeepAll"}
