"""Non-domination ranks and crowding against their definitions (Deb et al. 2002)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.ranking import crowding, non_domination_ranks, ranking


@st.composite
def tables(draw, max_rows: int = 10):
    """(n_rows, n_objectives) with few distinct values, so that ties and equal rows are common."""
    n_objectives = draw(st.integers(1, 3))
    row = st.tuples(*[st.integers(0, 4)] * n_objectives)
    return np.array(draw(st.lists(row, min_size=1, max_size=max_rows)), dtype=float)


def dominates(a, b) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def rank_by_hand(losses, row: int) -> int:
    """Length of the longest chain of rows that ends in this one, each dominating the next."""
    above = [rank_by_hand(losses, i) for i in range(len(losses)) if dominates(losses[i], losses[row])]
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


@given(tables())
def test_a_rank_is_the_length_of_the_longest_chain_of_dominance(losses):
    assert non_domination_ranks(losses).tolist() == [rank_by_hand(losses, i) for i in range(len(losses))]


@given(tables())
def test_crowding_is_the_sum_of_the_gaps_between_neighbours(losses):
    assert crowding(losses) == pytest.approx([crowding_by_hand(losses, i) for i in range(len(losses))])


@given(tables())
def test_the_order_is_by_rank_then_the_less_crowded_then_the_earlier(losses):
    ranks = [rank_by_hand(losses, i) for i in range(len(losses))]

    def order(row):
        level = [i for i in range(len(losses)) if ranks[i] == ranks[row]]
        return ranks[row], -crowding(losses[level])[level.index(row)], row

    assert ranking(losses).tolist() == sorted(range(len(losses)), key=order)


@given(tables(), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_units_of_an_objective_do_not_matter_to_the_order(losses, unit, offset):
    scaled = losses * unit + offset
    if all(len(np.unique(a)) == len(np.unique(b)) for a, b in zip(scaled.T, losses.T, strict=True)):
        assert non_domination_ranks(scaled).tolist() == non_domination_ranks(losses).tolist()
        finite = np.isfinite(crowding(losses))
        assert crowding(scaled)[finite] == pytest.approx(crowding(losses)[finite], abs=1e-6)
