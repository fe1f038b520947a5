"""How close one model's outputs are to a reference model's. Pure: token lists and arrays in, estimates out."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from trainables.comparison.bootstrap import over_groups
from trainables.values.findings import RESOLUTION, Comparison, Estimate, Similarity

SHARE = (0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScores:
    """One model against a reference model, row by row; Similarity and the ratio to seeds are made of means of these.

    Attributes:
        match, cosine, centered: (n_decoded_rows,), see Similarity's token_match_rate and cosines.
        top1, kl_nats: (n_rows,), means over each row's response tokens.
        groups: (n_rows,), number of each row's group of equal instruction; the decoded rows are the first.
    """

    match: NDArray[np.float64]
    cosine: NDArray[np.float64]
    centered: NDArray[np.float64]
    top1: NDArray[np.float64]
    kl_nats: NDArray[np.float64]
    groups: NDArray[np.int64]

    @property
    def decoded_groups(self) -> NDArray[np.int64]:
        """(n_decoded_rows,)."""
        return self.groups[: len(self.match)]


def row_scores(
    *,
    texts: Sequence[Sequence[int]],
    reference_texts: Sequence[Sequence[int]],
    states: NDArray[np.floating],
    reference_states: NDArray[np.floating],
    token_kl: NDArray[np.floating],
    token_same: NDArray[np.bool_],
    row_of_token: NDArray[np.integer],
    groups: Sequence[int],
) -> RowScores:
    """Compare two models' texts and states row by row.

    GPT-2's pooled states nearly share one direction, which makes the raw cosine of any two texts high
    (Ethayarajh 2019, arXiv:1909.00512); the centered one takes the reference's mean over rows off both.

    Args:
        texts, reference_texts: greedy continuations, n_decoded_rows each.
        states, reference_states: (n_decoded_rows, width), pooled.
        token_kl: (n_tokens,), KL(reference || model) at each response token, nats.
        token_same: (n_tokens,), whether the most likely token is the same for both.
        row_of_token: (n_tokens,), the row each token is in, from 0; every row has a token.
        groups: number of each row's group, n_rows.
    Raises:
        ValueError: sizes differ, or a row has no token.
    """
    if len(texts) != len(states):
        raise ValueError(f"need as many texts as pooled states, got {len(texts)} and {len(states)}")
    n_tokens = np.bincount(row_of_token)
    if not n_tokens.all():
        raise ValueError(f"row {int(np.argmin(n_tokens))} has no response token")
    center = reference_states.astype(np.float64).mean(axis=0)
    return RowScores(
        match=np.array([token_match(a, b) for a, b in zip(texts, reference_texts, strict=True)]),
        cosine=row_cosines(states, reference_states),
        centered=row_cosines(states - center, reference_states - center),
        top1=np.bincount(row_of_token, weights=token_same) / n_tokens,
        kl_nats=np.bincount(row_of_token, weights=token_kl) / n_tokens,
        groups=np.asarray(groups),
    )


def similarity(scores: RowScores, untuned: RowScores) -> Similarity:
    """Means over rows with their intervals, which are over groups of equal instruction.

    Args:
        untuned: of the base without an adapter against the same reference, on the same rows; `scores` itself for its
            own similarity, whose recovered_cosine is 0.
    """
    paired, decoded = np.column_stack([scores.cosine, untuned.cosine]), scores.decoded_groups
    return Similarity(
        token_match_rate=over_groups(scores.match, decoded, bounds=SHARE),
        embedding_cosine=over_groups(scores.cosine, decoded, bounds=SHARE),
        centered_cosine=over_groups(scores.centered, decoded, bounds=SHARE),
        recovered_cosine=over_groups(paired, decoded, _recovered),
        top1_agreement=over_groups(scores.top1, scores.groups, bounds=SHARE),
        kl_nats=over_groups(scores.kl_nats, scores.groups, bounds=(0.0, inf)),
        n_rows=len(scores.top1),
        n_decoded_rows=len(scores.match),
        n_groups=len(np.unique(scores.groups)),
        n_decoded_groups=len(np.unique(decoded)),
    )


def seed_ratio(scores: RowScores, replicates: Sequence[RowScores]) -> Estimate:
    """(1 - mean cosine) / (1 - mean cosine over seeds), paired by row; conditional on these seeds.

    The denominator is at least RESOLUTION, so that the ratio stays finite where seeds change nothing.
    """
    other_seeds = np.mean([seed.cosine for seed in replicates], axis=0)
    return over_groups(np.column_stack([scores.cosine, other_seeds]), scores.decoded_groups, _distance_ratio)


def compare_rows(quantized: RowScores, untuned: RowScores, replicates: Sequence[RowScores] = ()) -> Comparison:
    """A 4-bit trial beside its references, all against the same baseline on the same rows."""
    return Comparison(
        quantized=similarity(quantized, untuned),
        untuned=similarity(untuned, untuned),
        replicates=tuple(similarity(seed, untuned) for seed in replicates),
        quantization_to_seed_ratio=seed_ratio(quantized, replicates) if replicates else None,
    )


def _recovered(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """See Similarity.recovered_cosine; means are of (cosine, cosine of the untuned base)."""
    cosine, untuned = means[..., 0], means[..., 1]
    return (cosine - untuned) / np.maximum(1 - untuned, RESOLUTION)


def _distance_ratio(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """See `seed_ratio`; means are of (cosine, mean cosine over seeds)."""
    return (1 - means[..., 0]) / np.maximum(1 - means[..., 1], RESOLUTION)


def token_match(ours: Sequence[int], baseline: Sequence[int]) -> float:
    """Share of equal positions, over the longer of two greedy continuations.

    >>> token_match([5, 6, 7], [5, 9])
    0.3333333333333333
    """
    if not ours and not baseline:
        return 1.0
    return sum(a == b for a, b in zip(ours, baseline, strict=False)) / max(len(ours), len(baseline))


def row_cosines(ours: NDArray[np.floating], baseline: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cosine of each row of one array with the same row of the other.

    Args:
        ours, baseline: (n_rows, width).
    Returns:
        (n_rows,), in [-1, 1]; 1 where both rows are zero, 0 where one is.
    Raises:
        ValueError: shapes differ, or are not 2-D.
    """
    if ours.shape != baseline.shape or ours.ndim != 2:
        raise ValueError(f"need two equal (n_rows, width) arrays, got {ours.shape} and {baseline.shape}")
    a, b = ours.astype(np.float64), baseline.astype(np.float64)
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.sum((a / norm_a[:, None]) * (b / norm_b[:, None]), axis=1)
    cosines = np.where((norm_a == 0) & (norm_b == 0), 1.0, np.nan_to_num(cosines, nan=0.0))
    return np.clip(cosines, -1.0, 1.0)
