"""Shares of resamples against their closed form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orchestrator.analysis.pareto import pareto_mask
from orchestrator.analysis.stability import N_RESAMPLES, front_shares

TABLES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8)


@pytest.mark.parametrize("n_degrees", [1, 4, 40])
@pytest.mark.parametrize("behind_by", [-0.02, 0.0, 0.01, 0.03])
def test_a_dearer_row_is_on_the_front_as_often_as_its_drawn_loss_is_the_lower(behind_by, n_degrees):
    """The difference of two drawn rows is Student's t, as of two runs whose spread was estimated."""
    sd = 0.01
    cheap, dear = front_shares([[1.0, 2.0], [2.0, 2.0 + behind_by]], [(0.0, 0), (sd, n_degrees)], [True, False])
    expected = stats.t.cdf(-behind_by / (2**0.5 * sd), n_degrees)
    assert cheap == 1.0
    assert dear == pytest.approx(expected, abs=4 * (0.25 / N_RESAMPLES) ** 0.5)


@given(TABLES)
def test_without_noise_a_share_is_whether_a_row_is_on_the_front(rows):
    table = np.array(rows, dtype=float)
    assert front_shares(table, [(0.0, 0)] * 2, [True, False]).tolist() == pareto_mask(table).astype(float).tolist()


@given(TABLES)
def test_the_same_rows_always_have_the_same_shares_which_add_up_to_at_least_one(rows):
    table = np.array(rows, dtype=float)
    shares = front_shares(table, [(0.0, 0), (0.5, 3)], [True, False])
    assert shares.tolist() == front_shares(table, [(0.0, 0), (0.5, 3)], [True, False]).tolist()
    assert shares.sum() >= 1 - 1e-9


def test_rows_that_share_a_measurement_are_drawn_alike():
    """The second is worse in the first objective alone; were its time drawn by itself, it would often be faster."""
    shared = front_shares([[1.0, 5.0], [2.0, 5.0]], [(0.0, 0), (0.1, 3)], [True, True])
    assert shared.tolist() == [1.0, 0.0]
    apart = front_shares([[1.0, 5.0], [2.0, 5.0]], [(0.0, 0), (0.1, 3)], [True, False])
    assert apart[1] == pytest.approx(0.5, abs=0.07)
