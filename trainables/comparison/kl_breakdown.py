"""KL of a 4-bit trial to its 16-bit baseline by token frequency, position and kind of task. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from math import inf

import numpy as np
from numpy.typing import NDArray

from trainables.comparison.bootstrap import bca
from trainables.data.tokens import TokenRow
from trainables.values.findings import KlShare

FREQUENCIES = {0: "unseen", 1: "1-9", 10: "10-99", 100: "100-999", 1000: "1000+"}
"""Smallest number of occurrences in the training responses -> name of the group."""
POSITIONS = {1: "1", 2: "2-4", 5: "5-16", 17: "17-64", 65: "65+"}
"""Smallest position in the response, from 1 -> name of the group."""


def token_counts(rows: Sequence[TokenRow]) -> Counter[int]:
    """Occurrences of each token in the responses of `rows`, end tokens included."""
    return Counter(chain.from_iterable(row.response_tokens for row in rows))


def shares(
    token_kl: NDArray[np.floating],
    tokens: Sequence[Sequence[int]],
    *,
    kinds: Sequence[str],
    counts: Mapping[int, int],
) -> tuple[KlShare, ...]:
    """Mean KL of every group that has a token, in the order of the groups; intervals are over all rows.

    The token-weighted mean over the groups of one `by` is the mean over all tokens. The interval of a group that
    is in one row only is that row's figure: it says nothing of other rows.

    Args:
        token_kl: (n_tokens,), KL(baseline || 4-bit trial) in nats at each response token, row by row.
        tokens: the response tokens of each row.
        kinds: kind of task of each row.
        counts: occurrences of each token in the responses of the training rows, see `token_counts`.
    Raises:
        ValueError: sizes differ.
    """
    lengths = [len(row) for row in tokens]
    if len(kinds) != len(tokens) or len(token_kl) != sum(lengths):
        raise ValueError(
            f"need one figure a token and one kind a row, got {len(token_kl)} figures for {sum(lengths)} tokens "
            f"and {len(kinds)} kinds for {len(tokens)} rows"
        )
    row_of_token = np.repeat(np.arange(len(tokens)), lengths)
    by_frequency: list[str] = []
    by_position: list[str] = []
    for row in tokens:
        by_frequency += [_group(FREQUENCIES, counts.get(token, 0)) for token in row]
        by_position += [_group(POSITIONS, position) for position in range(1, len(row) + 1)]
    groupings = {
        "token frequency": (FREQUENCIES.values(), np.array(by_frequency)),
        "position in the response": (POSITIONS.values(), np.array(by_position)),
        "kind of task": (sorted(set(kinds)), np.repeat(kinds, lengths)),
    }
    kl_shares = []
    for by, (groups, group_of_token) in groupings.items():
        for group in groups:
            inside = group_of_token == group
            if inside.any():
                kl_shares.append(_share(by, group, token_kl * inside, row_of_token, inside))
    return tuple(kl_shares)


def _group(starts: Mapping[int, str], value: int) -> str:
    """The group with the largest start that is at most `value`."""
    return starts[max(start for start in starts if start <= value)]


def _share(
    by: str, group: str, kl: NDArray[np.floating], row_of_token: NDArray[np.integer], inside: NDArray[np.bool_]
) -> KlShare:
    """One group's KlShare.

    Args:
        kl: (n_tokens,), 0 outside of the group.
        row_of_token: (n_tokens,), the row that each token is in.
        inside: (n_tokens,), whether each token is in the group.
    """
    n_tokens = np.bincount(row_of_token, weights=inside)
    rows = np.column_stack([np.bincount(row_of_token, weights=kl), n_tokens])
    return KlShare(
        by=by,
        group=group,
        kl_nats=bca(rows, _ratio, bounds=(0.0, inf)),
        n_tokens=int(n_tokens.sum()),
        n_rows=int((n_tokens > 0).sum()),
    )


def _ratio(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL a token, from means over rows of the KL and of the tokens in the group."""
    return means[..., 0] / means[..., 1]
