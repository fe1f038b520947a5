"""Where quantization shows: groups against plain loops, and their sums."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.comparison import kl_breakdown
from trainables.data.task_kind import TASK_KINDS
from trainables.data.tokens import TokenRow

COUNTS = [0, 1, 9, 10, 99, 100, 999, 1000, 50_000]
"""Times that token i was seen in training."""
OCCURRENCES = Counter(dict(enumerate(COUNTS)))
GROUP_OF_COUNT = ["unseen", "1-9", "1-9", "10-99", "10-99", "100-999", "100-999", "1000+", "1000+"]
ROWS = st.lists(
    st.tuples(st.lists(st.integers(0, len(COUNTS) - 1), min_size=1, max_size=90), st.sampled_from(TASK_KINDS)),
    min_size=2,
    max_size=6,
)


def shares_of(rows, seed: int = 0):
    tokens, kinds = [row for row, _ in rows], [kind for _, kind in rows]
    kl = np.random.default_rng(seed).exponential(size=sum(map(len, tokens)))
    return kl, kl_breakdown.shares(kl, tokens, kinds=kinds, groups=range(len(rows)), counts=OCCURRENCES)


@settings(max_examples=15)
@given(ROWS)
def test_the_groups_of_one_kind_weigh_out_to_the_mean_over_all_tokens(rows):
    kl, shares = shares_of(rows)
    for by in ("token frequency", "position in the response", "kind of task"):
        mine = [share for share in shares if share.by == by]
        assert sum(share.n_tokens for share in mine) == len(kl)
        assert all(share.n_tokens >= share.n_rows >= 1 for share in mine)
        assert sum(share.kl_nats.value * share.n_tokens for share in mine) == pytest.approx(kl.sum())
        assert all(share.kl_nats.low is share.kl_nats.high is None for share in mine), "so few rows give no interval"


@settings(max_examples=15)
@given(ROWS)
def test_every_group_agrees_with_a_plain_loop(rows):
    kl, shares = shares_of(rows)
    expected: dict[tuple[str, str], list[tuple[int, float]]] = {}
    figures = iter(kl)
    for n, (tokens, kind) in enumerate(rows):
        for place, token in enumerate(tokens, start=1):
            position = (
                "1"
                if place == 1
                else "2-4"
                if place <= 4
                else "5-16"
                if place <= 16
                else "17-64"
                if place <= 64
                else "65+"
            )
            figure = next(figures)
            for by, group in (
                ("token frequency", GROUP_OF_COUNT[token]),
                ("position in the response", position),
                ("kind of task", kind),
            ):
                expected.setdefault((by, group), []).append((n, figure))
    assert {(share.by, share.group) for share in shares} == expected.keys(), "empty groups are left out"
    for share in shares:
        entries = expected[share.by, share.group]
        assert share.kl_nats.value == pytest.approx(np.mean([figure for _, figure in entries]))
        assert (share.n_tokens, share.n_rows) == (len(entries), len({n for n, _ in entries}))


def test_a_group_that_differs_stands_out_and_its_interval_holds_its_mean():
    """First tokens at 1 nat and others at 0.1 or so, over 40 rows of 10 tokens."""
    rng = np.random.default_rng(0)
    kl = (np.where(np.arange(10) == 0, 1.0, 0.1) * rng.uniform(0.9, 1.1, size=(40, 10))).ravel()
    kinds = ["write"] * 39 + ["explain"]
    shares = kl_breakdown.shares(kl, [[1] * 10] * 40, kinds=kinds, groups=range(40), counts=OCCURRENCES)
    (alone,) = [share.kl_nats for share in shares if share.group == "explain"]
    assert (alone.low, alone.high) == (None, None), "one row says nothing of others"
    by_position = {share.group: share.kl_nats for share in shares if share.by == "position in the response"}
    assert by_position["1"].low < 1 < by_position["1"].high
    assert by_position["2-4"].high < 0.2 < by_position["1"].low


def test_groups_come_in_their_natural_order():
    tokens = [list(range(len(COUNTS))) * 9] * 3
    _, shares = shares_of([(row, kind) for row, kind in zip(tokens, ("write", "explain", "other"), strict=True)])
    assert [share.group for share in shares] == [
        *("unseen", "1-9", "10-99", "100-999", "1000+"),
        *("1", "2-4", "5-16", "17-64", "65+"),
        *("explain", "other", "write"),
    ]


def test_tokens_are_counted_in_responses_only():
    rows = [TokenRow(input_ids=(7, 7, 5, 5, 0), n_prompt_tokens=2), TokenRow(input_ids=(5, 6, 0), n_prompt_tokens=1)]
    assert kl_breakdown.token_counts(rows) == {5: 2, 6: 1, 0: 2}


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="got 2 figures for 3 tokens, 1 kinds and 2 groups for 2 rows"):
        kl_breakdown.shares(np.zeros(2), [[1, 2], [3]], kinds=["write"], groups=[0, 1], counts=OCCURRENCES)
