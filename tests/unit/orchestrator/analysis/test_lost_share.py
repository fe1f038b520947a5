"""The share of the gain that 4 bits lose: its interval by the bounds' own definition, groups, seeds, properties."""

from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import t

from orchestrator.analysis.lost_share import MIN_GROUPS, LostShare, PairedLosses, lost_share
from tests.bench.verdict import Case, rates

DRAWS = st.integers(0, 10**6)


@dataclass
class Drawn:
    """A sweep's losses; (n_pairs, n_rows) of the two trials, (n_rows,) of the rest."""

    quantized: np.ndarray
    baseline: np.ndarray
    untuned: np.ndarray
    rounded: np.ndarray
    tokens: np.ndarray
    groups: np.ndarray

    @property
    def found(self) -> LostShare:
        pairs = []
        for quantized, baseline in zip(self.quantized, self.baseline, strict=True):
            pair = PairedLosses(
                quantized=quantized, baseline=baseline, untuned=self.untuned, quantized_untuned=self.rounded
            )
            pairs.append(pair)
        return lost_share(pairs, row_tokens=self.tokens, row_groups=self.groups)


def drawn(seed: int, n_pairs: int = 3, n_rows: int = 80, lost: float = 0.03, seed_sd: float = 0.01) -> Drawn:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 60, n_rows).astype(float)
    untuned = (3 + rng.normal(0, 0.5, n_rows)) * tokens
    gain = (1 + rng.normal(0, 0.3, n_rows)) * tokens
    of_seed = rng.normal(0, seed_sd, (2, n_pairs, 1)) * tokens
    of_row = rng.normal(0, 0.05, (2, n_pairs, n_rows)) * tokens
    baseline = untuned - gain + of_seed[0] + of_row[0]
    return Drawn(
        quantized=baseline + lost * tokens + of_seed[1] + of_row[1],
        baseline=baseline,
        untuned=untuned,
        rounded=untuned + 0.1 * tokens,
        tokens=tokens,
        groups=rng.integers(0, n_rows // 2, n_rows) if seed % 2 else np.arange(n_rows),
    )


def reach_by_definition(case: Drawn, share: float, first: int = 0) -> tuple[float, float]:
    """D(s), and how far its one-sided 95 % bounds are away; seeds from `first` on make the mean."""
    names = sorted(set(case.groups))
    rows_of = [np.flatnonzero(case.groups == name) for name in names]
    contrast = case.quantized - (1 - share) * case.baseline - share * case.untuned
    sums = np.array([[row[rows].sum() for rows in rows_of] for row in contrast])
    tokens = np.array([case.tokens[rows].sum() for rows in rows_of])
    n_pairs, n_groups = sums.shape
    residual = (sums - sums.mean(axis=0).sum() / tokens.sum() * tokens) / tokens.mean()
    squared = t.ppf(0.95, n_groups - 1) ** 2 * residual.mean(axis=0).var(ddof=1) / n_groups
    if n_pairs > 1:
        squared += t.ppf(0.95, n_pairs - 1) ** 2 * (sums.sum(axis=1) / tokens.sum()).var(ddof=1) / (n_pairs - first)
    else:
        squared += (1.6448536269514722 * 0.012 * (case.untuned - case.baseline).sum() / tokens.sum()) ** 2
    return float(sums[first:].mean(axis=0).sum() / tokens.sum()), sqrt(squared)


@settings(max_examples=25, deadline=None)
@given(DRAWS, st.integers(1, 5))
def test_the_ends_are_the_shares_at_which_the_bounds_of_the_contrast_are_0(seed, n_pairs):
    case = drawn(seed, n_pairs)
    assume(case.found.withheld is None)  # one draw in many shows no gain
    fresh = 1 if n_pairs > 1 else 0

    def lower(share):
        middle, reach = reach_by_definition(case, share)
        return middle - reach

    def upper(share, first):
        middle, reach = reach_by_definition(case, share, first)
        return middle + reach

    found = case.found
    assert found.low == pytest.approx(brentq(lower, -20, 20), abs=1e-8)
    ends = [brentq(upper, -20, 20, args=(first,)) for first in (0, fresh)]
    assert found.high == pytest.approx(max(ends), abs=1e-8)


@settings(max_examples=40, deadline=None)
@given(DRAWS, st.integers(1, 4), st.floats(-0.1, 0.2), st.floats(0.01, 0.3))
def test_the_share_lies_within_and_the_margin_lies_within_exactly_where_it_is_undecided(seed, n_pairs, lost, margin):
    found = drawn(seed, n_pairs, lost=lost).found
    assume(found.withheld is None)  # one draw in many shows no gain
    assert found.low <= found.share <= found.high
    assert (found.answer(margin) == "undecided") == (found.low <= margin < found.high)
    assert (found.answer(margin) == "kept") == (found.high <= margin)


def test_the_share_and_what_rounding_costs_are_ratios_of_token_weighted_means():
    case = drawn(0)
    gain = (case.untuned - case.baseline).sum()
    found = case.found
    assert found.share == pytest.approx((case.quantized - case.baseline).sum() / gain)
    assert found.rounding_share == pytest.approx(3 * (case.rounded - case.untuned).sum() / gain)
    lost_before, lost_after = (case.rounded - case.untuned).sum(), (case.quantized - case.baseline).sum() / 3
    assert found.won_back_share == pytest.approx(1 - lost_after / lost_before)


def test_nothing_is_won_back_where_rounding_costs_nothing():
    case = drawn(0)
    case.rounded = case.untuned - 0.1
    assert case.found.won_back_share is None


def test_rows_of_one_group_are_summed_before_anything_is_compared():
    case = drawn(1)
    names = np.unique(case.groups)

    def by_group(values):
        return np.stack([values[..., case.groups == name].sum(axis=-1) for name in names], axis=-1)

    values = {name: by_group(getattr(case, name)) for name in ("quantized", "baseline", "untuned", "rounded", "tokens")}
    summed = Drawn(**values, groups=np.arange(len(names)))
    assert case.found.n_groups == len(names) < len(case.tokens)
    assert summed.found.low == pytest.approx(case.found.low)
    assert summed.found.high == pytest.approx(case.found.high)


def test_a_luckier_chosen_trial_cannot_lower_the_upper_end_below_that_of_the_fresh_seeds():
    """The chosen trial's luck lowers the mean over all pairs, not that over the others."""
    usual = drawn(2, lost=0.05, seed_sd=0.0)
    lucky = replace(usual, quantized=usual.quantized.copy())
    lucky.quantized[0] -= 0.03 * usual.tokens
    assert lucky.found.share < usual.found.share - 0.005
    assert lucky.found.high > usual.found.high


@pytest.mark.parametrize("n_rows", [2, MIN_GROUPS - 1])
def test_under_30_groups_there_is_no_interval_and_the_reason_counts_them(n_rows):
    found = drawn(0, n_rows=n_rows).found
    assert (found.low, found.high, found.answer(0.05)) == (None, None, None)
    assert found.withheld.startswith(f"{n_rows} groups of equal instruction are too few")
    assert found.share is not None
    assert drawn(0, n_rows=MIN_GROUPS).found.withheld is None


@pytest.mark.parametrize("gain", [-0.5, 0.0, 0.001])
def test_without_a_gain_that_is_surely_above_0_there_is_no_answer(gain):
    case = drawn(0)
    noise = np.random.default_rng(0).normal(0, 0.2, case.baseline.shape)
    case.baseline = case.untuned + (noise - gain) * case.tokens
    found = case.found
    assert found.gain_low_nats <= 0
    assert found.answer(0.05) is None
    assert found.withheld.startswith("tuning gained nothing")


def test_one_pair_is_as_unsure_as_a_seed_is_assumed_to_be_even_where_all_rows_agree():
    one = drawn(4, n_pairs=1)
    one.baseline = one.untuned[None] - one.tokens
    one.quantized = one.baseline + 0.03 * one.tokens
    assert one.found.high - one.found.share == pytest.approx(1.645 * 0.012, rel=1e-3)
    assert one.found.share - one.found.low == pytest.approx(1.645 * 0.012, rel=1e-3)


def test_losses_of_other_units_give_the_same_shares():
    case = drawn(6)
    bits = replace(case, **{n: getattr(case, n) / np.log(2) for n in ("quantized", "baseline", "untuned", "rounded")})
    for name in ("share", "low", "high", "rounding_share"):
        assert getattr(bits.found, name) == pytest.approx(getattr(case.found, name))


def test_no_pair_is_refused():
    with pytest.raises(ValueError, match="at least one pair"):
        lost_share([], row_tokens=[1], row_groups=[0])


def test_error_rates_of_a_short_simulation_are_near_those_that_are_claimed():
    found = rates(Case(paired=0.006, shared=0.006, n_pairs=3), 150, seed=5)
    assert found[0.05]["kept"] <= 0.08
    assert found[0.0]["kept"] >= 0.95
    assert found[0.075]["lost"] >= 0.70
    assert found[0.05]["covered"] >= 0.85
