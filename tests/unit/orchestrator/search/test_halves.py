"""Which 4-bit points complete a pair, and that a search takes them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from orchestrator.ledger.rows import Entry
from orchestrator.search.design import N_FIRST
from orchestrator.search.halves import MAX_APART, Halves, apart
from orchestrator.search.proposer import Proposer
from tests.support.sweeps import GRID, TPE, WORKLOAD, cost, make, measurement, space, trial

DISTRIBUTIONS = {
    "precision": CategoricalDistribution(("nf4", "16bit")),
    "rank": IntDistribution(0, 4),
    "learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
    "dropout": FloatDistribution(0.0, 0.5),
    "targets": CategoricalDistribution(("a", "b")),
}
POINTS = st.fixed_dictionaries(
    {
        "precision": st.sampled_from(["nf4", "16bit"]),
        "rank": st.integers(0, 4),
        "learning_rate": st.floats(1e-5, 1e-3),
        "dropout": st.floats(0, 0.5),
        "targets": st.sampled_from("ab"),
    }
)


def at(precision: str, **changed) -> dict:
    return {"precision": precision, "rank": 2, "learning_rate": 1e-4, "dropout": 0.0, "targets": "a"} | changed


@given(POINTS, POINTS)
def test_a_distance_is_symmetric_at_most_one_a_setting_and_does_not_see_the_precision(one, other):
    there, back = apart(one, other, DISTRIBUTIONS), apart(other, one, DISTRIBUTIONS)
    assert there == pytest.approx(back)
    assert 0 <= there <= len(DISTRIBUTIONS) - 1 + 1e-9
    assert apart({**one, "precision": "nf4"}, {**one, "precision": "16bit"}, DISTRIBUTIONS) == 0


def test_distances_by_hand():
    assert apart(at("nf4"), at("nf4", rank=3, targets="b"), DISTRIBUTIONS) == 1.25
    assert round(apart(at("nf4"), at("nf4", learning_rate=1e-5, dropout=0.25), DISTRIBUTIONS), 9) == 1.0


@given(st.lists(POINTS, max_size=8), POINTS)
def test_the_nearest_is_the_4_bit_half_of_a_completed_16_bit_point_and_none_is_nearer(completed, asked):
    halves = Halves(DISTRIBUTIONS)
    for point in completed:
        halves.completed(point)
    found = halves.nearest(asked, lambda point: True)
    full = [point for point in completed if point["precision"] == "16bit"]
    distances = [apart(point, asked, DISTRIBUTIONS) for point in full]
    if asked["precision"] == "16bit" or min(distances, default=9.0) > MAX_APART:
        assert found is None
    else:
        assert {**found, "precision": "16bit"} in full
        assert found["precision"] == "nf4"
        assert apart(found, asked, DISTRIBUTIONS) == pytest.approx(min(distances))


def test_a_half_that_is_known_is_passed_over():
    halves = Halves(DISTRIBUTIONS)
    for rank in (2, 3):
        halves.completed(at("16bit", rank=rank))
    assert halves.nearest(at("nf4"), lambda point: point["rank"] != 2) == at("nf4", rank=3)
    assert halves.nearest(at("nf4"), lambda point: False) is None


def test_a_space_of_one_precision_has_no_halves():
    one = {name: dist for name, dist in DISTRIBUTIONS.items() if name != "precision"}
    for distributions in (one, one | {"precision": CategoricalDistribution(("nf4",))}):
        halves = Halves(distributions)
        assert not halves.is_searched
        assert halves.nearest(at("nf4"), lambda point: True) is None


def both():
    parameters = {**TPE["parameters"], "precision": {"values": ["nf4", "16bit"]}}
    return make(space({**TPE, "parameters": parameters, "fixed": GRID["fixed"]}))


def proposals(n: int) -> list[tuple[dict, bool]]:
    """Points of a search whose trials all complete, and whether each one's 16-bit half was there when it was asked."""
    asked = both()
    proposer, seen, found = Proposer(asked), set(), []
    for number in range(n):
        params = proposer.propose(lambda p: WORKLOAD.key(asked.config(dict(p))), seen.__contains__)
        config = asked.config(params)
        found.append((params, WORKLOAD.key(replace(config, precision="16bit")) in seen))
        seen.add(WORKLOAD.key(config))
        history = (measurement(8, 1.0 / config.rank + config.learning_rate),)
        result = trial(number, config=config, state="completed", history=history, cost=cost())
        proposer.tell(Entry(result=replace(result, key=WORKLOAD.key(config)), params=params))
    return found


def test_a_search_over_both_precisions_begins_at_16_bits_and_then_asks_for_their_4_bit_halves():
    found = proposals(30)
    assert all(params["precision"] == "16bit" for params, _ in found[:N_FIRST])
    quantized = [has_half for params, has_half in found if params["precision"] == "nf4"]
    assert sum(quantized) >= 5, "as many as there are 16-bit halves near"
    assert quantized[:3] == [True] * 3


def test_a_point_that_completes_a_pair_is_at_work_until_it_is_told():
    asked = both()
    proposer, key_of = Proposer(asked), lambda p: WORKLOAD.key(asked.config(dict(p)))
    seen = set()
    for number in range(40):
        params = proposer.propose(key_of, seen.__contains__)
        running = [t for t in proposer.study.trials if t.state.name == "RUNNING"]
        assert [proposer._decoded(t.params) for t in running] == [params]
        seen.add(key_of(params))
        result = trial(number, config=asked.config(params), history=(measurement(8, 1.0),), cost=cost())
        proposer.tell(Entry(result=replace(result, key=key_of(params), state="completed"), params=params))
