"""Who goes on from a rung: multi-objective successive halving against its definition."""

import itertools
from math import ceil, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.pruning.halving import (
    crowding,
    depths,
    goes_on,
    holds_extreme,
    is_among_first,
    n_kept,
    ranking,
    stratum,
)

ETAS = st.sampled_from([1.5, 2.0, 3.0, 4.0])


@st.composite
def rungs(draw, max_rows: int = 10):
    """(losses, strata) with few distinct values, so that ties and equal rows are common."""
    n_objectives = draw(st.integers(1, 3))
    row = st.tuples(st.tuples(*[st.integers(0, 4)] * n_objectives), st.integers(0, 1))
    rows = draw(st.lists(row, min_size=1, max_size=max_rows))
    return np.array([losses for losses, _ in rows], dtype=float), np.array([band for _, band in rows])


def dominates(a, b) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def depth_by_hand(losses, row: int) -> int:
    """Length of the longest chain of rows that ends in this one, each dominating the next."""
    above = [depth_by_hand(losses, i) for i in range(len(losses)) if dominates(losses[i], losses[row])]
    return 1 + max(above, default=0)


def crowding_by_hand(losses, row: int) -> float:
    total = 0.0
    for column in np.transpose(losses):
        values = sorted(enumerate(column), key=lambda pair: pair[1])
        place = [i for i, _ in values].index(row)
        ends = values[-1][1] - values[0][1]
        if not ends:
            continue
        if place in (0, len(values) - 1):
            return np.inf
        total += (values[place + 1][1] - values[place - 1][1]) / ends
    return total


def goes_on_by_hand(losses, strata, row: int, eta: float) -> bool:
    others = [i for i in range(len(losses)) if i != row]
    if any(all(losses[row][k] < losses[i][k] for i in others) for k in range(losses.shape[1])):
        return True
    peers = [i for i in range(len(losses)) if strata[i] == strata[row]]
    table = losses[peers]
    depth = [depth_by_hand(table, i) for i in range(len(peers))]
    if depth[peers.index(row)] == 1:
        return True

    def order(i):
        level = [j for j in range(len(peers)) if depth[j] == depth[i]]
        return depth[i], -crowding_by_hand(table[level], level.index(i)), i

    best = sorted(range(len(peers)), key=order)[: ceil(len(peers) / eta)]
    return peers.index(row) in best


@given(rungs())
def test_depth_is_the_length_of_the_longest_chain_of_dominance(rung):
    losses, _ = rung
    assert depths(losses).tolist() == [depth_by_hand(losses, i) for i in range(len(losses))]


@given(rungs())
def test_crowding_is_the_sum_of_the_gaps_between_neighbours(rung):
    losses, _ = rung
    assert crowding(losses) == pytest.approx([crowding_by_hand(losses, i) for i in range(len(losses))])


@given(rungs(), ETAS)
def test_who_goes_on_is_as_defined(rung, eta):
    losses, strata = rung
    for row in range(len(losses)):
        assert goes_on(losses, strata, row, eta=eta) == goes_on_by_hand(losses, strata, row, eta), row


@given(rungs(), ETAS)
def test_a_trial_that_none_dominates_is_never_stopped(rung, eta):
    losses, strata = rung
    for row in range(len(losses)):
        if not any(dominates(other, losses[row]) for other in losses):
            assert goes_on(losses, strata, row, eta=eta)


@given(rungs(), ETAS, st.integers(0, 2), st.sampled_from([0.5, 1.0]))
def test_who_alone_has_the_least_of_an_objective_goes_on_even_where_the_gain_is_noise(rung, eta, noisy, noise):
    losses, strata = rung
    epsilon = np.zeros(losses.shape[1])
    epsilon[noisy % len(epsilon)] = noise
    for row, objective in itertools.product(range(len(losses)), range(losses.shape[1])):
        if all(losses[row, objective] < losses[i, objective] for i in range(len(losses)) if i != row):
            assert goes_on(losses, strata, row, eta=eta, epsilon=epsilon)


@given(rungs(), ETAS)
def test_the_only_trial_of_its_stratum_goes_on(rung, eta):
    losses, strata = rung
    for row in range(len(losses)):
        if (strata == strata[row]).sum() == 1:
            assert goes_on(losses, strata, row, eta=eta)


@given(rungs(), ETAS)
def test_at_most_1_minus_1_over_eta_of_a_stratum_is_stopped(rung, eta):
    losses, strata = rung
    for band in set(strata.tolist()):
        rows = np.flatnonzero(strata == band)
        n_stopped = sum(not goes_on(losses, strata, int(row), eta=eta) for row in rows)
        assert n_stopped <= (1 - 1 / eta) * len(rows) + 1e-9


@given(rungs(), ETAS)
def test_whoever_is_stopped_is_dominated_within_its_stratum(rung, eta):
    losses, strata = rung
    for row in range(len(losses)):
        if not goes_on(losses, strata, row, eta=eta):
            assert any(dominates(losses[i], losses[row]) for i in np.flatnonzero(strata == strata[row]))


@given(rungs(), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_units_of_an_objective_do_not_matter_to_the_order(rung, unit, offset):
    losses, _ = rung
    scaled = losses * unit + offset
    if all(len(np.unique(a)) == len(np.unique(b)) for a, b in zip(scaled.T, losses.T, strict=True)):
        assert depths(scaled).tolist() == depths(losses).tolist()
        finite = np.isfinite(crowding(losses))
        assert crowding(scaled)[finite] == pytest.approx(crowding(losses)[finite], abs=1e-6)


@given(rungs(), ETAS, st.data())
def test_arriving_one_by_one_every_least_value_stays_with_a_trial_that_was_not_stopped(rung, eta, data):
    losses, strata = rung
    order = data.draw(st.permutations(range(len(losses))))
    alive = np.ones(len(losses), dtype=bool)
    for n in range(1, len(order) + 1):
        come = np.array(order[:n])
        alive[come[-1]] = goes_on(losses[come], strata[come], n - 1, eta=eta, alive=alive[come])
    assert (losses[alive].min(axis=0) == losses.min(axis=0)).all()
    assert all(alive[i] for i in range(len(losses)) if depth_by_hand(losses, i) == 1)


def test_a_depth_that_does_not_fit_whole_is_thinned_where_it_is_crowded():
    losses = np.array([[0, 0], [1, 9], [2, 4.2], [3, 4.1], [9, 1]], dtype=float)
    strata = np.zeros(5)
    assert ranking(losses).tolist()[0] == 0
    on = [goes_on(losses, strata, row, eta=5 / 3) for row in range(5)]
    assert on == [True, True, False, False, True]


def test_the_least_value_of_a_trial_that_was_stopped_is_held_by_the_next_that_has_it():
    losses = np.array([[1, 5.0], [2, 1], [3, 2], [1, 5.5]])
    strata, stopped = np.zeros(4), np.array([False, True, True, True])
    assert not goes_on(losses, strata, 3, eta=4)
    assert goes_on(losses, strata, 3, eta=4, alive=stopped)


def test_equal_trials_on_the_front_all_go_on():
    losses = np.ones((5, 2))
    assert all(goes_on(losses, np.zeros(5), row, eta=4) for row in range(5))
    assert not holds_extreme(losses, 0)


def test_without_strata_the_dear_trial_would_fall_to_cheap_ones():
    """It beats its own kind; the cheap ones dominate it while the loss still falls."""
    losses = np.array([[1, 1.0], [1.01, 1.1], [1.02, 1.2], [5, 1.5], [5.1, 1.6]])
    assert not goes_on(losses, np.zeros(5), 3, eta=2)
    assert goes_on(losses, np.array([0, 0, 0, 1, 1]), 3, eta=2)


@given(st.floats(1, 1e6), st.floats(0.01, 1.0))
def test_peaks_of_one_stratum_differ_by_less_than_its_share(mib, share):
    band = stratum(mib, share)
    assert stratum(mib * (1 + share) * 1.0001, share) > band
    assert band * log(1 + share) <= log(mib) + 1e-9


@pytest.mark.parametrize(("n", "eta", "kept"), [(1, 4, 1), (2, 2, 1), (3, 2, 2), (3, 1.5, 2), (9, 3, 3), (10, 3, 4)])
def test_one_part_in_eta_goes_on_rounded_up(n, eta, kept):
    assert n_kept(n, eta) == kept


@given(rungs())
def test_being_among_the_first_is_being_there_in_the_ranking(rung):
    losses, _ = rung
    order = ranking(losses).tolist()
    for n, row in itertools.product(range(len(order) + 1), order):
        assert is_among_first(losses, row, n) == (row in order[:n])
