"""BCa intervals: against SciPy's, at their edges, and in how often they hold the truth."""

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import bootstrap

from tests.bench import coverage
from trainables.comparison.bootstrap import bca, over_groups
from trainables.values.findings import MIN_GROUPS

COLUMNS = {
    "normal": lambda rng, n: rng.normal(3, 1, n),
    "skewed": lambda rng, n: rng.lognormal(0, 1, n),
    "near its bound": lambda rng, n: rng.beta(20, 0.5, n),
    "mostly equal": lambda rng, n: (rng.random(n) < 0.95).astype(float),
}
STATISTICS = {
    "mean": lambda means: means[..., 0],
    "ratio": lambda means: means[..., 0] / (means[..., 1] + 1),
    "recovered": lambda means: (means[..., 0] - means[..., 1]) / (5 - means[..., 1]),
}


@pytest.mark.parametrize("of", STATISTICS)
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("n_rows", [16, 128])
def test_the_interval_is_scipys_up_to_the_noise_of_resampling(n_rows, column, of):
    rng = np.random.default_rng(n_rows)
    rows = np.column_stack([COLUMNS[column](rng, n_rows), rng.gamma(2, size=n_rows)])
    found = bca(rows, STATISTICS[of], seed=1)

    def statistic(first, second, axis=-1):
        return STATISTICS[of](np.stack([first.mean(axis), second.mean(axis)], axis=-1))

    expected = bootstrap(
        (*rows.T,), statistic, paired=True, vectorized=True, method="BCa", rng=np.random.default_rng(2)
    )
    low, high = expected.confidence_interval
    assert found.value == pytest.approx(statistic(*rows.T))
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.06 * (high - low))


def test_the_interval_of_a_skewed_mean_is_skewed_the_same_way():
    figure = bca(np.random.default_rng(0).lognormal(0, 1, 64))
    assert figure.high - figure.value > 1.2 * (figure.value - figure.low)


@given(arrays(np.float64, st.integers(2, 20), elements=st.integers(0, 3).map(float)))
@settings(max_examples=50, deadline=None)
def test_a_mean_lies_in_its_interval_and_the_interval_among_the_rows(rows):
    figure = bca(rows, n_resamples=999)
    assert rows.min() <= figure.low <= figure.high <= rows.max()
    if np.ptp(rows):
        assert figure.low < figure.high


def test_equal_seeds_give_equal_intervals_and_others_do_not():
    rows = np.random.default_rng(0).normal(size=50)
    assert bca(rows, seed=3) == bca(rows, seed=3) != bca(rows, seed=4)


def test_figures_that_move_together_keep_the_interval_of_their_difference_narrow():
    rng = np.random.default_rng(0)
    first = rng.normal(size=100)
    second = first + 0.01 * rng.normal(size=100)
    figure = bca(np.column_stack([first, second]), lambda means: means[..., 0] - means[..., 1])
    assert figure.high - figure.low < 0.01


def test_the_interval_holds_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    figures = [bca(rng.exponential(size=60), n_resamples=999, seed=i) for i in range(400)]
    assert 0.915 < np.mean([figure.low <= 1 <= figure.high for figure in figures]) < 0.98


@pytest.mark.parametrize(
    ("at", "bounds", "low", "high"),
    [
        (1.0, (0, 1), 1 - 3 / 60, 1.0),
        (0.0, (0, 1), 0.0, 3 / 60),
        (1.0, (-1, 1), 1 - 6 / 60, 1.0),
        (0.5, (0, 1), 0.5, 0.5),
        (0.0, (0, inf), 0.0, 0.0),
        (1.0, (-inf, inf), 1.0, 1.0),
    ],
)
def test_equal_rows_get_the_rule_of_three_at_a_bound_and_the_point_elsewhere(at, bounds, low, high):
    figure = bca(np.full(60, at), bounds=bounds)
    assert (figure.value, figure.low, figure.high) == pytest.approx((at, low, high), abs=1e-15)


def test_the_rule_of_three_misses_the_truth_at_most_5_times_in_100():
    n_rows = 60
    low = bca(np.ones(n_rows), bounds=(0, 1)).low
    assert (low - 0.001) ** n_rows < 0.05  # chance of n_rows ones where the true share is below the interval


def test_rows_that_differ_by_rounding_only_count_as_equal():
    rows = np.where(np.arange(30) % 2, 1.0, 1 - 1e-15)
    assert bca(rows, bounds=(0, 1)).low == pytest.approx(0.9)


def test_two_rows_never_reach_beyond_the_bounds():
    figure = bca(np.ones(2), bounds=(0, 1))
    assert (figure.low, figure.high) == (0, 1)


@pytest.mark.parametrize("n_rows", [0, 1])
def test_fewer_than_two_rows_are_refused(n_rows):
    with pytest.raises(ValueError, match=f"at least 2 of them, got {n_rows}"):
        bca(np.ones((n_rows, 1)))


def test_a_figure_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="is nan"):
        bca(np.array([1.0, np.nan, 2.0]))
    with pytest.raises(ValueError, match="is inf"):
        bca(np.array([[1.0, 0.0]] * 3), lambda means: means[..., 0] / means[..., 1])


def test_resamples_on_which_the_figure_is_undefined_are_left_out():
    rows = np.zeros((10, 2))
    rows[:2] = [[1.0, 2.0], [3.0, 3.0]]  # one resample in ten draws neither
    figure = bca(rows, lambda means: means[..., 0] / means[..., 1])
    assert 0.5 <= figure.low < figure.value == 0.8 < figure.high <= 1.0


def test_a_figure_that_one_row_alone_defines_is_the_point():
    rows = np.zeros((10, 2))
    rows[4] = [1.0, 2.0]
    figure = bca(rows, lambda means: means[..., 0] / means[..., 1])
    assert (figure.low, figure.value, figure.high) == (0.5, 0.5, 0.5)


@given(st.lists(st.integers(0, 40), min_size=60, max_size=120))
@settings(max_examples=20, deadline=None)
def test_an_interval_over_groups_is_that_of_a_ratio_of_their_sums(groups):
    rows = np.random.default_rng(len(groups)).lognormal(size=len(groups))
    sums = np.array([[rows[np.equal(groups, g)].sum(), groups.count(g)] for g in sorted(set(groups))])
    found = over_groups(rows, groups)
    assert found.value == pytest.approx(rows.mean())
    if len(sums) < MIN_GROUPS:
        assert (found.low, found.high) == (None, None)
    else:
        expected = bca(sums, lambda means: means[..., 0] / means[..., 1])
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_where_each_row_is_a_group_the_interval_is_that_over_rows():
    rows = np.random.default_rng(0).lognormal(size=(64, 2))
    assert over_groups(rows, range(64), STATISTICS["ratio"]) == bca(rows, STATISTICS["ratio"])


def test_rows_that_repeat_their_group_bring_no_certainty():
    rows = np.random.default_rng(0).normal(size=50)
    once, five_times = over_groups(rows, range(50)), over_groups(np.repeat(rows, 5), np.repeat(range(50), 5))
    assert (five_times.low, five_times.high) == pytest.approx((once.low, once.high))


def test_where_rows_of_a_group_are_alike_the_interval_over_groups_holds_the_truth_and_that_over_rows_does_not():
    over, by_row = coverage.skewed_rows(64, 4, 100, np.random.default_rng(1))
    assert over > 0.85
    assert by_row < 0.8
