"""Dominance and hypervolume against their definitions."""

import itertools
from bisect import bisect_left
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.pareto import growing_hypervolume, hypervolume, pareto_mask

REFERENCE = 4


def rows_of(n_objectives: int, low: int = 0, high: int = 3, min_size: int = 1) -> st.SearchStrategy:
    """Few distinct values, so that ties and equal rows are common."""
    return st.lists(st.tuples(*[st.integers(low, high)] * n_objectives), min_size=min_size, max_size=12)


LOSSES = st.integers(1, 4).flatmap(rows_of)
BOXED = st.integers(2, 3).flatmap(lambda k: rows_of(k, low=-1, high=REFERENCE + 1))
"""Some rows lie on the reference point's border or beyond it."""


def dominates(a, b) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def volume_by_cells(rows) -> int:
    """Unit cells under the reference point whose lower corner some row reaches."""
    cells = itertools.product(range(-1, REFERENCE), repeat=len(rows[0]))
    return sum(any(all(x <= c for x, c in zip(row, cell, strict=True)) for row in rows) for cell in cells)


def volume(rows) -> float:
    return hypervolume(rows, [REFERENCE] * len(rows[0]))


@given(LOSSES)
def test_the_mask_agrees_with_the_definition(losses):
    expected = [not any(dominates(a, b) for a in losses) for b in losses]
    assert pareto_mask(losses).tolist() == expected


@given(LOSSES, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(losses, random):
    order = list(range(len(losses)))
    random.shuffle(order)
    assert pareto_mask([losses[i] for i in order]).tolist() == pareto_mask(losses)[order].tolist()


@given(LOSSES)
def test_every_row_off_the_front_is_dominated_by_one_on_it(losses):
    mask = pareto_mask(losses)
    front = [row for row, on in zip(losses, mask, strict=True) if on]
    assert front
    assert all(on or any(dominates(a, row) for a in front) for row, on in zip(losses, mask, strict=True))


@given(LOSSES, st.floats(1e-6, 1e6), st.floats(-1e6, 1e6))
def test_units_and_offsets_of_an_objective_do_not_matter(losses, unit, offset):
    scaled = np.array(losses, dtype=float) * unit + offset
    distinct = [len(np.unique(column)) for column in scaled.T]
    if distinct == [len(set(column)) for column in zip(*losses, strict=True)]:  # rounding made no new ties
        assert pareto_mask(scaled).tolist() == pareto_mask(losses).tolist()


@given(BOXED)
def test_the_hypervolume_is_the_count_of_dominated_cells(rows):
    assert volume(rows) == pytest.approx(volume_by_cells(rows), abs=1e-9)


@given(BOXED)
def test_only_the_front_adds_to_the_hypervolume(rows):
    front = [row for row, on in zip(rows, pareto_mask(rows), strict=True) if on]
    assert volume(front) == pytest.approx(volume(rows), abs=1e-9)


@given(rows_of(3, low=-1, high=5), st.tuples(*[st.integers(-1, 5)] * 3))
def test_one_more_row_never_lowers_the_hypervolume(rows, one_more):
    assert volume([*rows, one_more]) >= volume(rows) - 1e-9


@given(BOXED)
def test_the_growing_hypervolume_is_that_of_each_beginning(rows):
    grown = growing_hypervolume(rows, [REFERENCE] * len(rows[0]))
    assert grown == pytest.approx([volume_by_cells(rows[: n + 1]) for n in range(len(rows))], abs=1e-9)


@given(BOXED)
def test_the_growing_hypervolume_moves_only_where_a_row_is_beaten_by_none_before_it(rows):
    grown = growing_hypervolume(rows, [REFERENCE] * len(rows[0]))
    for n in range(1, len(rows)):
        beaten = any(all(x <= y for x, y in zip(row, rows[n], strict=True)) for row in rows[:n])
        assert not beaten or grown[n] == grown[n - 1]


def test_a_row_on_the_border_of_the_reference_adds_nothing():
    assert hypervolume([[0, 4]], [4, 4]) == 0
    assert hypervolume([[0, 4], [3, 3], [9, 0]], [4, 4]) == 1


def test_no_rows_have_an_empty_mask_and_no_volume():
    assert pareto_mask(np.zeros((0, 3))).shape == (0,)
    assert pareto_mask(np.zeros((0, 3))).dtype == bool
    assert hypervolume(np.zeros((0, 3)), [1, 1, 1]) == 0


def test_the_input_is_left_as_it_was():
    losses = np.array([[3.0, 1.0], [1.0, 3.0], [3.0, 3.0]])
    before = losses.copy()
    pareto_mask(losses)
    hypervolume(losses, [4, 4])
    assert (losses == before).all()


@pytest.mark.parametrize("losses", [[1.0, 2.0], 3.0, [[[1.0]]], [[1.0, np.nan]], [[np.inf, 1.0]], [[1.0], [-np.inf]]])
def test_losses_that_are_not_finite_or_not_a_table_are_refused(losses):
    with pytest.raises(ValueError, match="finite"):
        pareto_mask(losses)
    with pytest.raises(ValueError, match="finite"):
        hypervolume(losses, [4, 4])


@pytest.mark.parametrize(
    ("reference", "message"),
    [([4.0], "1 objectives, losses have 2"), ([4.0] * 3, "3 objectives"), ([4.0, np.nan], "finite"), (4.0, "finite")],
)
def test_a_reference_that_does_not_fit_is_refused(reference, message):
    with pytest.raises(ValueError, match=message):
        hypervolume([[1.0, 2.0]], reference)


def volume_by_slices(losses, corner: float) -> float:
    """Dominated volume of 3 objectives: at each height of the third, the area under the stairs of the rows below it."""
    stairs: list[tuple[float, float]] = []  # by the first objective; the second falls
    volume, area, height = 0.0, 0.0, 0.0
    for x, y, z in sorted(map(tuple, losses.tolist()), key=lambda row: row[2]):
        volume, height = volume + area * (z - height), z
        at = bisect_left(stairs, (x, y))
        if (at and stairs[at - 1][1] <= y) or (at < len(stairs) and stairs[at] == (x, y)):
            continue
        end = at
        while end < len(stairs) and stairs[end][1] >= y:
            end += 1
        left_y = stairs[at - 1][1] if at else corner
        right_x = stairs[end][0] if end < len(stairs) else corner
        kept = [(x, left_y), *stairs[at:end], (right_x, 0.0)]  # what the row adds lies above it, below the old stairs
        area += sum((b[0] - a[0]) * (a[1] - y) for a, b in pairwise(kept))
        stairs[at:end] = [(x, y)]
    return volume + area * (corner - height)


@pytest.mark.parametrize("kind", ["cloud", "all on the front", "all equal"])
def test_mask_and_volume_of_10000_trials_with_3_objectives_agree_with_their_definitions(kind):
    random = np.random.default_rng(0)
    losses = random.random((10_000, 3))
    if kind == "all on the front":
        losses /= np.linalg.norm(losses, axis=1, keepdims=True)  # on a sphere around the worst corner's opposite
        losses = 1 - losses
    elif kind == "all equal":
        losses[:] = 0.5
    mask = pareto_mask(losses)
    front = losses[mask]
    for i in Random(0).sample(range(len(losses)), 300):
        beaten = ((losses <= losses[i]).all(axis=1) & (losses < losses[i]).any(axis=1)).any()
        assert mask[i] == (not beaten)
    assert hypervolume(losses, [1.1] * 3) == pytest.approx(volume_by_slices(losses, 1.1))
    assert (len(front) == 10_000) == (kind != "cloud")


# --- dominance with noise

NOISES = st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0]), min_size=4, max_size=4)


def dominates_by_more(a, b, noise) -> bool:
    """The definition: nowhere worse by more than the noise, and somewhere better by more."""
    pairs = list(zip(a, b, noise, strict=True))
    return all(x <= y + n for x, y, n in pairs) and any(x < y - n for x, y, n in pairs)


def with_two_noisy(losses, noises) -> list[float]:
    """Noise of each objective, 0 but for two of them."""
    noise = noises[: len(losses[0])]
    noisy = [i for i, n in enumerate(noise) if n][2:]
    return [0.0 if i in noisy else n for i, n in enumerate(noise)]


@given(LOSSES, NOISES)
def test_with_noise_no_member_dominates_a_member_and_one_dominates_every_struck_row(losses, noises):
    noise = with_two_noisy(losses, noises)
    mask = pareto_mask(losses, noise)
    members = list(itertools.compress(losses, mask))
    assert members
    assert not any(dominates_by_more(a, b, noise) for a in members for b in members)
    struck = itertools.compress(losses, ~mask)
    assert all(any(dominates_by_more(a, b, noise) for a in members) for b in struck)


@given(LOSSES, NOISES)
def test_a_row_that_none_dominates_by_more_than_any_noise_stays(losses, noises):
    noise = noises[: len(losses[0])]
    for row, on in zip(losses, pareto_mask(losses, noise), strict=True):
        assert on or any(dominates_by_more(a, row, noise) for a in losses)


@given(LOSSES, NOISES, st.randoms(use_true_random=False))
def test_with_noise_the_order_of_rows_changes_nothing(losses, noises, random):
    noise, order = noises[: len(losses[0])], list(range(len(losses)))
    random.shuffle(order)
    assert pareto_mask([losses[i] for i in order], noise).tolist() == pareto_mask(losses, noise)[order].tolist()


@given(st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=9), st.sampled_from([1.0, 2.0]))
def test_where_three_objectives_are_noisy_no_member_dominates_a_member_either(losses, noise):
    members = list(itertools.compress(losses, pareto_mask(losses, [noise] * 3)))
    assert members
    assert not any(dominates_by_more(a, b, [noise] * 3) for a in members for b in members)


def test_of_a_ring_the_cheapest_stays():
    ring = [(0.0, 1.0, 2.0), (2.0, 0.0, 1.0), (1.0, 2.0, 0.0)]
    noise = [1.0] * 3
    assert all(dominates_by_more(ring[i], ring[(i + 1) % 3], noise) for i in range(3))
    assert pareto_mask(ring, noise).tolist() == [True, False, False]
    assert pareto_mask(ring[::-1], noise).tolist() == [False, False, True]


def test_rows_that_each_cost_a_little_more_for_less_than_the_noise_become_one():
    ranks = [(900.0 + i, 2.0 - 0.0006 * i) for i in range(6)]
    assert pareto_mask(ranks).all()
    assert pareto_mask(ranks, [0.0, 0.011]).tolist() == [True, *[False] * 5]


def test_what_a_struck_row_alone_dominates_stays():
    rows = [(1.0, 1.8), (2.0, 1.0), (3.0, 0.5)]  # each is worse than the next by less than the noise, and cheaper
    assert pareto_mask(rows, [0.0, 1.0]).tolist() == [True, False, True]


@pytest.mark.parametrize("noise", [[0.1], [0.1, -0.1], [0.1, np.nan], 0.1])
def test_noise_that_does_not_fit_is_refused(noise):
    with pytest.raises(ValueError, match=r"noise must be|finite"):
        pareto_mask([[1.0, 2.0]], noise)
