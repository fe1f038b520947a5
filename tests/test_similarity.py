"""Similarity of two models' outputs: bounds, symmetries and definitions."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from trainables.similarity import centered_cosine, embedding_cosine, row_cosines, token_match, token_match_rate

TEXTS = st.lists(st.integers(0, 3), max_size=6)
STATES = arrays(
    np.float64,
    array_shapes(min_dims=2, max_dims=2, max_side=5),
    elements=st.floats(-100, 100).map(lambda x: round(x, 3)),
)


@given(TEXTS, TEXTS)
def test_token_match_is_the_share_of_equal_positions_of_the_longer_text(ours, twin):
    longer = max(len(ours), len(twin))
    equal = sum(1 for i in range(longer) if i < len(ours) and i < len(twin) and ours[i] == twin[i])
    assert token_match(ours, twin) == token_match(twin, ours) == (equal / longer if longer else 1.0)


@given(TEXTS, TEXTS)
def test_token_match_is_one_exactly_for_equal_texts(ours, twin):
    assert (token_match(ours, twin) == 1.0) == (ours == twin)


def test_the_match_rate_weighs_rows_equally_however_long_they_are():
    assert token_match_rate([[1], [1] * 9], [[1], [2] * 9]) == 0.5


def test_the_match_rate_needs_equally_many_rows_at_least_one():
    with pytest.raises(ValueError, match="at least one row"):
        token_match_rate([], [])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        token_match_rate([[1]], [[1], [2]])


@given(STATES, st.floats(0.01, 100), st.floats(0.01, 100))
def test_row_cosines_lie_in_bounds_and_ignore_length(states, a, b):
    other = states[::-1].copy()
    cosines = row_cosines(states, other)
    assert cosines.shape == (len(states),)
    assert ((cosines >= -1) & (cosines <= 1)).all()
    np.testing.assert_allclose(row_cosines(a * states, b * other), cosines, atol=1e-9)
    np.testing.assert_allclose(row_cosines(other, states), cosines, atol=1e-12)


@given(STATES)
def test_a_state_has_cosine_one_with_itself_and_minus_one_with_its_opposite(states):
    np.testing.assert_allclose(row_cosines(states, states), 1.0, atol=1e-12)
    assume(np.linalg.norm(states, axis=1).all())
    np.testing.assert_allclose(row_cosines(states, -states), -1.0, atol=1e-12)


def test_cosines_of_zero_rows_are_defined():
    ours = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    twin = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    assert row_cosines(ours, twin).tolist() == [1.0, 0.0, 0.0]


def test_embedding_cosine_is_the_mean_over_rows_in_float64():
    ours = np.array([[1.0, 0.0], [1.0, 1.0]], dtype=np.float32)
    twin = np.array([[2.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    assert embedding_cosine(ours, twin) == pytest.approx((1 + 0.5**0.5) / 2, abs=1e-12)


@given(STATES, st.integers(-100, 100))
def test_centered_cosine_ignores_a_direction_that_all_rows_share(states, shift):
    other = states[::-1] * 0.5
    assert centered_cosine(states + shift, other + shift) == pytest.approx(centered_cosine(states, other), abs=1e-6)


def test_centering_shows_what_a_shared_direction_hides():
    rng = np.random.default_rng(0)
    shared = np.full((50, 16), 30.0)
    ours, twin = shared + rng.normal(size=(50, 16)), shared + rng.normal(size=(50, 16))
    assert embedding_cosine(ours, twin) > 0.99
    assert abs(centered_cosine(ours, twin)) < 0.15


def test_centering_takes_the_twins_mean_off_both_so_that_a_drift_of_all_rows_shows():
    twin = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert centered_cosine(twin + np.array([0.0, 1.0]), twin) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("shapes", [((2, 3), (3, 2)), ((2, 3), (2, 4)), ((3,), (3,))])
def test_states_of_other_shapes_are_refused_with_both_shapes(shapes):
    with pytest.raises(ValueError, match="need two equal") as caught:
        row_cosines(*map(np.zeros, shapes))
    assert str(shapes[1]) in str(caught.value)
