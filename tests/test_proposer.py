"""What a sampler is asked and told: ordered values by their place, and a history that stays short."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from orchestrator.ledger.rows import Entry
from orchestrator.pruning.halving import depths
from orchestrator.search.proposer import Proposer, modelled, ordered
from search_spaces import Parameter
from tests.sweeps import GRID, TPE, WORKLOAD, make, measurement, space, trial


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ((4, 1, 2), (1, 2, 4)),
        ((0.5, 1, 2), (0.5, 1, 2)),
        ((1, 2), None),
        ((True, False, 3), None),
        (("a", "b", "c"), None),
        ((1, "b", 3), None),
    ],
)
def test_three_numbers_have_an_order_and_nothing_else_has(values, found):
    assert ordered(Parameter(values=values)) == found


def test_a_range_needs_no_places():
    assert ordered(Parameter(distribution="uniform", min=0, max=1)) is None


def told(proposer, asked, number: int, state: str = "completed"):
    """Take one point and tell what became of it; returns its key."""
    params = proposer.propose(lambda p: WORKLOAD.key(asked.config(dict(p))), lambda key: False)
    config = asked.config(params)
    values = {"peak_memory_mib": float(config.rank), "seconds_per_step": 1.0}
    result = trial(number, config=config, state=state, history=(measurement(8, 1.0 / config.rank, **values),))
    proposer.tell(Entry(result=trial_with_key(result, config), params=params))
    return config


def trial_with_key(result, config):
    from dataclasses import replace

    return replace(result, key=WORKLOAD.key(config))


SIXTEEN = {"parameters": {"rank": TPE["parameters"]["rank"], "learning_rate": TPE["parameters"]["learning_rate"]}}


def sixteen_bit():
    return make(space({**TPE, **SIXTEEN, "fixed": {**GRID["fixed"], "precision": "16bit"}}))


def test_a_study_knows_an_ordered_value_by_its_place_and_gives_it_back_as_it_is():
    asked = sixteen_bit()
    proposer = Proposer(asked)
    ranks = [told(proposer, asked, number).rank for number in range(20)]
    assert set(ranks) <= {1, 2, 4, 8}
    assert [1, 2, 4, 8].index(ranks[-1]) == proposer.study.trials[-1].params["rank"]


def test_a_long_history_is_cut_to_what_matters_and_what_runs_stays_known():
    asked = sixteen_bit()
    proposer = Proposer(asked, max_modelled=10)
    key_of = lambda p: WORKLOAD.key(asked.config(dict(p)))  # noqa: E731
    running = proposer.propose(key_of, lambda key: False)
    for number in range(50):
        told(proposer, asked, number)
        assert len(proposer.study.trials) <= 2 * 10 + 1
    at_work = [t for t in proposer.study.trials if t.state == TrialState.RUNNING]
    assert [t.params["learning_rate"] for t in at_work] == [running["learning_rate"]]
    result = trial(99, config=asked.config(running), history=(measurement(8, 1.0),))
    proposer.tell(Entry(result=trial_with_key(result, asked.config(running)), params=running))
    assert not [t for t in proposer.study.trials if t.state == TrialState.RUNNING]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=40), st.integers(1, 20))
def test_a_short_history_holds_the_best_fifth_and_then_the_latest_in_their_order(rows, n):
    trials = []
    for number, (a, b, is_pruned) in enumerate(rows):
        state = TrialState.PRUNED if is_pruned else TrialState.COMPLETE
        one = create_trial(state=state, values=None if is_pruned else (a, b), constraints={"memory": 0.0})
        one.number = number
        trials.append(one)
    kept = [t.number for t in modelled(trials, n)]
    assert kept == sorted(kept)
    assert len(kept) == min(n, len(trials))
    whole = [t for t in trials if t.state == TrialState.COMPLETE]
    front = [
        t.number
        for t, d in zip(whole, depths(np.array([t.values for t in whole])) if whole else [], strict=True)
        if d == 1
    ]
    if len(front) <= n // 5:
        assert set(front) <= set(kept)
    if n >= 1 and trials and n - n // 5 >= 1:
        assert trials[-1].number in kept


def test_trials_at_work_do_not_make_a_study_full():
    """Else the driver of a large cluster would begin it anew whenever a trial ends."""
    asked = sixteen_bit()
    proposer = Proposer(asked, max_modelled=5)
    key_of = lambda p: WORKLOAD.key(asked.config(dict(p)))  # noqa: E731
    for _ in range(20):
        assert proposer.propose(key_of, lambda key: False) is not None
    study = proposer.study
    for number in range(10):
        told(proposer, asked, number)
    assert proposer.study is study
    told(proposer, asked, 10)
    assert proposer.study is not study
    assert sum(t.state == TrialState.RUNNING for t in proposer.study.trials) == 20
