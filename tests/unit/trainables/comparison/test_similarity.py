"""Similarity of two models' outputs: bounds, symmetries and definitions."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from trainables.comparison.bootstrap import over_groups
from trainables.comparison.similarity import (
    RowScores,
    compare_rows,
    row_cosines,
    row_scores,
    seed_ratio,
    similarity,
    token_match,
)
from trainables.values.findings import flat

TEXTS = st.lists(st.integers(0, 3), max_size=6)
STATES = arrays(
    np.float64,
    array_shapes(min_dims=2, max_dims=2, max_side=5),
    elements=st.floats(-100, 100).map(lambda x: round(x, 3)),
)


@given(TEXTS, TEXTS)
def test_token_match_is_the_share_of_equal_positions_of_the_longer_text(ours, baseline):
    longer = max(len(ours), len(baseline))
    equal = sum(1 for i in range(longer) if i < len(ours) and i < len(baseline) and ours[i] == baseline[i])
    assert token_match(ours, baseline) == token_match(baseline, ours) == (equal / longer if longer else 1.0)


@given(TEXTS, TEXTS)
def test_token_match_is_one_exactly_for_equal_texts(ours, baseline):
    assert (token_match(ours, baseline) == 1.0) == (ours == baseline)


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
    baseline = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    assert row_cosines(ours, baseline).tolist() == [1.0, 0.0, 0.0]


def scored(**given) -> RowScores:
    """Scores of two rows with one token each, unless told otherwise."""
    n_rows = len(given.get("states", [0, 0]))
    defaults = {
        "texts": [[1]] * n_rows,
        "reference_texts": [[1]] * n_rows,
        "states": np.eye(n_rows, 3),
        "reference_states": np.eye(n_rows, 3),
        "token_kl": np.zeros(n_rows),
        "token_same": np.ones(n_rows, dtype=bool),
        "row_of_token": np.arange(n_rows),
        "groups": range(n_rows),
    }
    return row_scores(**(defaults | given))


def random_scores(seed: int, n_rows: int = 40, n_decoded: int = 30, near: float = 0.05) -> RowScores:
    rng = np.random.default_rng(seed)
    cosine = 1 - near * rng.random(n_decoded)
    return RowScores(
        match=rng.random(n_decoded),
        cosine=cosine,
        centered=cosine - near,
        top1=rng.random(n_rows),
        kl_nats=rng.gamma(1, near, n_rows),
        groups=np.arange(n_rows),
    )


def test_row_figures_are_means_over_each_rows_own_tokens():
    rng = np.random.default_rng(0)
    lengths = [3, 1, 7]
    kl, same = [rng.random(n) for n in lengths], [rng.random(n) < 0.5 for n in lengths]
    shuffled = rng.permutation(sum(lengths))
    scores = scored(
        token_kl=np.concatenate(kl)[shuffled],
        token_same=np.concatenate(same)[shuffled],
        row_of_token=np.repeat([0, 1, 2], lengths)[shuffled],
    )
    np.testing.assert_allclose(scores.kl_nats, [row.mean() for row in kl])
    np.testing.assert_allclose(scores.top1, [row.mean() for row in same])


def test_rows_weigh_equally_however_long_their_texts_are():
    scores = scored(texts=[[1], [1] * 9], reference_texts=[[1], [2] * 9])
    assert similarity(scores, scores).token_match_rate.value == 0.5


def test_cosines_are_computed_in_float64():
    states = np.array([[1, 0], [1, 1]], dtype=np.float32)
    other = np.array([[2, 0], [1, 0]], dtype=np.float32)
    np.testing.assert_allclose(scored(states=states, reference_states=other).cosine, [1, 0.5**0.5], atol=1e-15)


UNLIKE = arrays(
    np.float64,
    array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=5),
    elements=st.integers(-(10**5), 10**5).map(lambda x: x / 1000),
    unique=True,
)
"""States of which no two rows are alike."""


@given(UNLIKE, st.integers(-100, 100))
def test_centered_cosine_ignores_a_direction_that_all_rows_share(states, shift):
    other = states[::-1] * 0.5
    for found in (states, other):  # what the mean takes off whole has a direction of rounding alone
        assume(np.linalg.norm(found - other.mean(axis=0), axis=1).min() > 1e-3)
    plain, shifted = (scored(states=states + by, reference_states=other + by) for by in (0, shift))
    np.testing.assert_allclose(plain.centered.mean(), shifted.centered.mean(), atol=1e-6)


def test_centering_shows_what_a_shared_direction_hides():
    rng = np.random.default_rng(0)
    shared = np.full((50, 16), 30.0)
    scores = scored(states=shared + rng.normal(size=(50, 16)), reference_states=shared + rng.normal(size=(50, 16)))
    assert scores.cosine.mean() > 0.99
    assert abs(scores.centered.mean()) < 0.15


def test_centering_takes_the_references_mean_off_both_so_that_a_drift_of_all_rows_shows():
    reference = np.array([[1.0, 0.0], [-1.0, 0.0]])
    scores = scored(states=reference + np.array([0.0, 1.0]), reference_states=reference)
    np.testing.assert_allclose(scores.centered, 0.5**0.5)


def test_a_row_without_a_token_and_missing_texts_are_refused():
    with pytest.raises(ValueError, match="row 1 has no response token"):
        scored(row_of_token=np.array([0, 2]))
    with pytest.raises(ValueError, match="got 1 and 2"):
        scored(texts=[[1]])
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        scored(reference_texts=[[1]])


def test_a_similarity_is_the_rows_means_with_their_intervals_and_counts():
    scores, untuned = random_scores(1), random_scores(2, near=0.5)
    found = similarity(scores, untuned)
    assert (found.n_rows, found.n_decoded_rows, found.n_groups, found.n_decoded_groups) == (40, 30, 40, 30)
    assert found.token_match_rate == over_groups(scores.match, range(30))
    assert found.embedding_cosine == over_groups(scores.cosine, range(30))
    assert found.centered_cosine == over_groups(scores.centered, range(30))
    assert found.top1_agreement == over_groups(scores.top1, range(40))
    assert found.kl_nats == over_groups(scores.kl_nats, range(40))


def test_of_few_groups_a_similarity_has_its_values_and_no_interval():
    scores = replace(random_scores(1), groups=np.arange(40) // 2)
    found = similarity(scores, random_scores(2, near=0.5))
    assert (found.n_groups, found.n_decoded_groups) == (20, 15)
    assert found.kl_nats.value == pytest.approx(scores.kl_nats.mean())
    assert (found.kl_nats.low, found.embedding_cosine.high, found.recovered_cosine.low) == (None, None, None)
    assert {name for name in flat(compare_rows(scores, scores)) if name.endswith(("_low", "_high"))} == set()


def test_recovered_is_the_way_from_untuned_to_the_reference_paired_over_rows():
    scores, untuned = random_scores(1), random_scores(2, near=0.5)
    found = similarity(scores, untuned).recovered_cosine
    c, u = scores.cosine.mean(), untuned.cosine.mean()
    assert found.value == pytest.approx((c - u) / (1 - u))
    assert found.low < found.value < found.high < 1
    # A trial that halves every row's distance has recovered half, whatever the rows: pairing leaves no spread.
    halved = similarity(replace(untuned, cosine=(1 + untuned.cosine) / 2), untuned).recovered_cosine
    assert (halved.low, halved.value, halved.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-12)


def test_the_untuned_base_recovers_nothing_of_itself():
    untuned = random_scores(2)
    recovered = similarity(untuned, untuned).recovered_cosine
    assert (recovered.low, recovered.value, recovered.high) == (0, 0, 0)


def test_a_model_against_itself_is_one_with_the_rule_of_three_and_no_kl():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(60, 8))
    scores = scored(states=states, reference_states=states)
    found = similarity(scores, random_scores(0, n_decoded=60))
    ones = [found.token_match_rate, found.top1_agreement, found.embedding_cosine, found.centered_cosine]
    assert [figure.value for figure in ones] == pytest.approx([1, 1, 1, 1], abs=1e-12)
    assert [figure.low for figure in ones] == pytest.approx([0.95] * 4)
    assert (found.kl_nats.low, found.kl_nats.high) == (0, 0)
    assert found.recovered_cosine.value == pytest.approx(1)


def test_the_seed_ratio_compares_distances_and_pairs_rows():
    scores, seeds = random_scores(1, near=0.01), [random_scores(2, near=0.1), random_scores(3, near=0.1)]
    found = seed_ratio(scores, seeds)
    distance = np.mean([1 - seed.cosine.mean() for seed in seeds])
    assert found.value == pytest.approx((1 - scores.cosine.mean()) / distance)
    assert found.low < found.value < found.high
    tenth = replace(scores, cosine=1 - (1 - seeds[0].cosine) / 10)
    ratio = seed_ratio(tenth, seeds[:1])
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((0.1, 0.1, 0.1), abs=1e-12)


def test_references_at_no_distance_leave_every_figure_finite():
    same = random_scores(1, near=0)
    comparison = compare_rows(random_scores(2), same, [same])
    assert np.isfinite(list(flat(comparison).values())).all()
    assert flat(compare_rows(same, same, [same]))["quantization_to_seed_ratio"] == 0


def test_a_comparison_holds_each_side_against_the_same_untuned_base():
    quantized, untuned, *seeds = (random_scores(seed) for seed in range(4))
    comparison = compare_rows(quantized, untuned, seeds)
    assert comparison.quantized == similarity(quantized, untuned)
    assert comparison.untuned == similarity(untuned, untuned)
    assert comparison.replicates == tuple(similarity(seed, untuned) for seed in seeds)
    assert comparison.quantization_to_seed_ratio == seed_ratio(quantized, seeds)


def test_a_comparison_without_other_seeds_has_no_seed_ratio():
    comparison = compare_rows(random_scores(0), random_scores(1))
    assert comparison.replicates == ()
    assert comparison.quantization_to_seed_ratio is None


def test_sides_of_different_rows_are_refused():
    with pytest.raises(ValueError, match="dimension"):
        similarity(random_scores(0), random_scores(1, n_decoded=29))


@pytest.mark.parametrize("shapes", [((2, 3), (3, 2)), ((2, 3), (2, 4)), ((3,), (3,))])
def test_states_of_other_shapes_are_refused_with_both_shapes(shapes):
    with pytest.raises(ValueError, match="need two equal") as caught:
        row_cosines(*map(np.zeros, shapes))
    assert str(shapes[1]) in str(caught.value)
