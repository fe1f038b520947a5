"""KL of a 4-bit trial to its 16-bit baseline by token frequency, position and kind of task. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from math import inf
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainables.comparison.bootstrap import over_groups
from trainables.values.findings import KlShare

if TYPE_CHECKING:
    from trainables.data.tokens import TokenRow

FREQUENCIES = {0: "unseen", 1: "1-9", 10: "10-99", 100: "100-999", 1000: "1000+"}
"""Smallest number of occurrences in the training responses -> name of the group."""
POSITIONS = {1: "1", 2: "2-4", 5: "5-16", 17: "17-64", 65: "65+"}
"""Smallest position in the response, from 1 -> name of the group."""


def token_counts(rows: "Sequence[TokenRow]") -> Counter[int]:
    """Occurrences of each token in the responses of `rows`, end tokens included."""
    return Counter(chain.from_iterable(row.response_tokens for row in rows))


def shares(
    token_kl: NDArray[np.floating],
    tokens: Sequence[Sequence[int]],
    *,
    kinds: Sequence[str],
    groups: Sequence[int],
    counts: Mapping[int, int],
) -> tuple[KlShare, ...]:
    """Mean KL of every part that has a token, in the order of the parts.

    The token-weighted mean over the parts of one `by` is the mean over all tokens. Intervals are over groups of equal
    instruction; that of a part which is in fewer than MIN_GROUPS of them is withheld.

    Args:
        token_kl: (n_tokens,), KL(baseline || 4-bit trial) in nats at each response token, row by row.
        tokens: the response tokens of each row.
        kinds: kind of task of each row.
        groups: number of each row's group of equal instruction.
        counts: occurrences of each token in the responses of the training rows, see `token_counts`.
    Raises:
        ValueError: sizes differ.
    """
    n_tokens = sum(map(len, tokens))
    if not len(kinds) == len(groups) == len(tokens) or len(token_kl) != n_tokens:
        raise ValueError(
            f"need one figure a token and one kind and group a row, got {len(token_kl)} figures for {n_tokens} tokens, "
            f"{len(kinds)} kinds and {len(groups)} groups for {len(tokens)} rows"
        )
    row_of_token = np.repeat(np.arange(len(tokens)), list(map(len, tokens)))
    kl_shares = []
    for by, parts, part_of_token in _groupings(tokens, kinds, counts):
        for part in parts:
            inside = part_of_token == part
            if inside.any():
                kl_shares.append(_share(by, part, token_kl * inside, row_of_token, inside, np.asarray(groups)))
    return tuple(kl_shares)


def _groupings(
    tokens: Sequence[Sequence[int]], kinds: Sequence[str], counts: Mapping[int, int]
) -> Iterator[tuple[str, Iterable[str], NDArray[np.str_]]]:
    """What divides the tokens, its parts in their order, and the part of each token; see `shares`."""
    occurrences: list[int] = []
    positions: list[int] = []
    for row in tokens:
        occurrences += [counts.get(token, 0) for token in row]
        positions += range(1, len(row) + 1)
    yield "token frequency", FREQUENCIES.values(), _groups(FREQUENCIES, occurrences)
    yield "position in the response", POSITIONS.values(), _groups(POSITIONS, positions)
    yield "kind of task", sorted(set(kinds)), np.repeat(kinds, list(map(len, tokens)))


def _groups(starts: Mapping[int, str], values: Sequence[int]) -> NDArray[np.str_]:
    """For each value the group with the largest start that is at most the value; starts ascend."""
    return np.array(list(starts.values()))[np.searchsorted(list(starts), values, side="right") - 1]


def _share(
    by: str,
    part: str,
    kl: NDArray[np.floating],
    row_of_token: NDArray[np.integer],
    inside: NDArray[np.bool_],
    groups: NDArray[np.integer],
) -> KlShare:
    """One part's KlShare.

    Args:
        kl: (n_tokens,), 0 outside of the part.
        row_of_token: (n_tokens,), the row that each token is in.
        inside: (n_tokens,), whether each token is in the part.
        groups: (n_rows,).
    """
    n_tokens = np.bincount(row_of_token, weights=inside)
    rows = np.column_stack([np.bincount(row_of_token, weights=kl), n_tokens])
    return KlShare(
        by=by,
        group=part,
        kl_nats=over_groups(rows, groups, _ratio, bounds=(0.0, inf), n_telling=len(np.unique(groups[n_tokens > 0]))),
        n_tokens=int(n_tokens.sum()),
        n_rows=int((n_tokens > 0).sum()),
    )


def _ratio(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL a token, from means over rows of the KL and of the tokens in the part."""
    return means[..., 0] / means[..., 1]
