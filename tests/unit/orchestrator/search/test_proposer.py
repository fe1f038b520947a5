"""What a sampler is asked and told: ordered values by their place, and a history that stays short."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from scipy.stats import qmc

from orchestrator.analysis.ranking import non_domination_ranks
from orchestrator.ledger.rows import Entry
from orchestrator.search.design import N_FIRST, first_points, latin_hypercube
from orchestrator.search.history import modelled
from orchestrator.search.proposer import MAX_REPEATS, Proposer, ordered
from search_spaces import Parameter
from tests.support.sweeps import GRID, TPE, WORKLOAD, cost, make, measurement, space, trial


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
    its_cost = cost(peak_memory_mib=float(config.rank))
    result = trial(number, config=config, state=state, history=(measurement(8, 1.0 / config.rank),), cost=its_cost)
    proposer.tell(Entry(result=trial_with_key(result, config), params=params))
    return config


def trial_with_key(result, config):
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
        for t, d in zip(whole, non_domination_ranks(np.array([t.values for t in whole])) if whole else [], strict=True)
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


DISTRIBUTIONS = {
    "place": IntDistribution(0, 3),
    "rank": IntDistribution(1, 64),
    "learning_rate": FloatDistribution(1e-5, 1e-1, log=True),
    "dropout": FloatDistribution(0.0, 0.8),
    "targets": CategoricalDistribution(("a", "b", "c")),
}


@given(st.integers(0, 2**31), st.integers(1, 40))
def test_first_points_are_one_in_each_slice_of_the_middle_half_and_take_choices_in_equal_parts(seed, n):
    points = first_points(DISTRIBUTIONS, seed, n)
    assert len(points) == n
    slices = {
        "learning_rate": [(np.log10(p["learning_rate"]) + 5) / 4 for p in points],
        "dropout": [p["dropout"] / 0.8 for p in points],
    }
    for shares in slices.values():
        assert sorted(int(2 * n * (share - 0.25) + 1e-9) for share in shares) == list(range(n))
    assert {p["place"] for p in points} <= {1, 2}
    assert all(17 <= p["rank"] <= 48 for p in points)
    counts = [sum(p["targets"] == choice for p in points) for choice in "abc"]
    assert sum(counts) == n
    assert max(counts) - min(counts) <= 2  # a third of n is no whole number of slices
    assert points == first_points(DISTRIBUTIONS, seed, n)


def asked_for(proposer, asked, n: int) -> list[dict]:
    return [proposer.propose(lambda p: WORKLOAD.key(asked.config(dict(p))), lambda key: False) for _ in range(n)]


def as_asked(points: list[dict]) -> list[dict]:
    """Ranks by value."""
    return [{**point, "rank": (1, 2, 4, 8)[point["rank"]]} for point in points]


@pytest.mark.parametrize("method", ["tpe", "gp"])
def test_a_search_with_a_model_begins_with_the_first_points(method):
    asked = sixteen_bit()
    asked = asked.model_copy(update={"space": asked.space.model_copy(update={"method": method})})
    proposer = Proposer(asked)
    first = first_points(proposer._distributions, asked.seed)
    assert len({point["learning_rate"] for point in first}) == N_FIRST
    points = asked_for(proposer, asked, N_FIRST + 3)
    assert points[:N_FIRST] == as_asked(first)
    assert points[N_FIRST] not in as_asked(first)


def test_a_search_that_was_told_of_enough_trials_does_not_begin_again():
    asked = sixteen_bit()
    old, new = Proposer(asked), Proposer(asked)
    points = asked_for(old, asked, N_FIRST)
    for number, point in enumerate(points):
        result = trial(number, config=asked.config(point), history=(measurement(8, 1.0),))
        new.tell(Entry(result=trial_with_key(result, result.config), params=point))
    assert asked_for(new, asked, 1)[0] not in points


def test_a_resumed_search_takes_up_its_first_points_where_it_left_them():
    asked = sixteen_bit()
    key_of = lambda p: WORKLOAD.key(asked.config(dict(p)))  # noqa: E731
    points = asked_for(Proposer(asked), asked, N_FIRST)
    known = {key_of(point) for point in points[:4]}
    assert Proposer(asked).propose(key_of, known.__contains__) == points[4]


@pytest.mark.parametrize("seed", range(4))
def test_where_the_sampler_asks_for_known_points_only_the_nearest_unknown_one_is_taken(seed):
    ranks = (1, 2, 4, 8)
    parameters = {"rank": {"values": list(ranks)}, "precision": {"values": ["nf4", "16bit"]}}
    asked = make(space({**TPE, "parameters": parameters}), seed=seed)
    proposer, seen = Proposer(asked), []

    def key_of(params):
        seen.append(dict(params))
        return WORKLOAD.key(asked.config(dict(params)))

    ends = [{"rank": rank, "precision": precision} for rank in (1, 8) for precision in ("nf4", "16bit")]
    left = [WORKLOAD.key(asked.config(point)) for point in ends]
    taken = proposer.propose(key_of, lambda key: len(seen) <= MAX_REPEATS or key not in left)
    last = seen[MAX_REPEATS - 1]
    assert taken == {"rank": 1 if last["rank"] <= 2 else 8, "precision": last["precision"]}


@given(st.integers(1, 9), st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_the_latin_hypercube_is_scipys(n_dimensions, seed, n):
    expected = qmc.LatinHypercube(n_dimensions, rng=seed).random(n)
    assert np.array_equal(latin_hypercube(n_dimensions, seed, n), expected)


@pytest.mark.parametrize("method", ["tpe", "gp", "nsga2", "random", "qmc"])
def test_a_fresh_proposer_that_was_told_the_same_proposes_the_same_at_a_place(method):
    """Results come in late, and the fresh one was not asked for what the first had proposed."""
    asked = make(space({**TPE, "method": method}))
    key_of = lambda p: WORKLOAD.key(asked.config(dict(p)))  # noqa: E731
    first, fresh, points, known = Proposer(asked), Proposer(asked), [], set()

    def tell(proposer, place):
        params = points[place]
        config = asked.config(dict(params))
        loss = 2.0 + abs(np.log(config.learning_rate / 1e-3)) / config.rank
        result = trial(place, config=config, key=key_of(params), history=(measurement(8, loss),))
        proposer.tell(Entry(result=result, params=params))

    for place in range(N_FIRST + 6):
        if place >= 3:
            tell(first, place - 3)
        points.append(first.propose(key_of, known.__contains__, place))
        known.add(key_of(points[-1]))
    seen: set[str] = set()
    for place, params in enumerate(points[:-1]):
        if place >= 3:
            tell(fresh, place - 3)
        fresh.propose_again(params, key_of, seen.__contains__, place)
        seen.add(key_of(params))
    tell(fresh, len(points) - 4)
    assert fresh.propose(key_of, seen.__contains__, len(points) - 1) == points[-1]
