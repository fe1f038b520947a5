"""The bench of what order costs: its simulated workers by hand, and both of its parts on a few draws."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench import order
from tests.bench.order import Unit, wall_seconds
from tests.support.sweeps import REPO

UNITS = st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0, 2, 5])), min_size=1, max_size=20)


def of(*pairs) -> list[Unit]:
    return [Unit(float(trial), float(baseline)) for trial, baseline in pairs]


def test_two_workers_by_hand():
    units = of((9, 0), (1, 0), (1, 0), (1, 0), (9, 0))
    assert wall_seconds(units, 2, None) == 12, "one does the first, the other all the rest"
    assert wall_seconds(units, 2, 1) == 19, "the third waits for the first, until 9; the last for the third"
    assert wall_seconds(units, 2, 3) == 18, "only the last waits for the first"


def test_a_baseline_comes_before_the_next_proposal_and_is_waited_for_where_it_is_part_of_the_result():
    units = of((1, 5), (1, 0), (1, 0))
    assert wall_seconds(units, 1, None) == 8
    assert wall_seconds(units, 2, None) == 6
    assert wall_seconds(units, 2, 1) == 7, "the third waits for the baseline of the first, until 6"
    assert wall_seconds(units, 2, 1, pair_lag=1) == 6, "a fourth would"


@settings(max_examples=50)
@given(UNITS, st.integers(1, 4), st.integers(1, 8))
def test_a_lag_of_all_proposals_costs_nothing_and_one_worker_never_waits(pairs, n_workers, lag):
    units = of(*pairs)
    free = wall_seconds(units, n_workers, None)
    assert wall_seconds(units, n_workers, len(units)) == free
    assert wall_seconds(units, n_workers, lag) >= sum(u.trial + u.baseline for u in units) / n_workers
    assert wall_seconds(units, 1, lag) == sum(unit.trial + unit.baseline for unit in units)


def test_the_interval_of_a_difference_is_of_pairs():
    rng = np.random.default_rng(0)
    seeds = rng.uniform(0.5, 0.9, 50)
    found = order.paired(32, seeds + 0.01 + rng.normal(0, 0.001, 50), seeds)
    assert 0.9 < found.low < found.difference < found.high < 1.1
    assert found.is_within
    assert not order.paired(32, seeds - 0.01 + rng.normal(0, 0.001, 50), seeds).is_within


def test_the_command_prints_both_parts(capsys):
    table = str(REPO / order.TABLE)
    asked = ["--table", table, "--seeds", "2", "--sizes", "8", "--draws", "3", "--processes", "1"]
    assert order.main(asked) == 0
    *said, last = capsys.readouterr().out.splitlines()
    assert {"waiting", "hypervolume"} == json.loads(last).keys()
    assert sum("a similarity is asked for" in line for line in said) == len(order.WORKERS)
    assert "8 trials, 4 workers, 2 seeds" in said[-1]
