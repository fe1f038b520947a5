"""How close a 4-bit model is to its 16-bit twin. Pure: token lists and arrays in, numbers out."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def token_match(ours: Sequence[int], twin: Sequence[int]) -> float:
    """Share of equal positions, over the longer of two greedy continuations.

    >>> token_match([5, 6, 7], [5, 9])
    0.3333333333333333
    """
    if not ours and not twin:
        return 1.0
    return sum(a == b for a, b in zip(ours, twin, strict=False)) / max(len(ours), len(twin))


def token_match_rate(ours: Sequence[Sequence[int]], twin: Sequence[Sequence[int]]) -> float:
    """Mean over rows of `token_match`.

    Raises:
        ValueError: no rows, or not as many on both sides.
    """
    if not ours:
        raise ValueError("token_match_rate needs at least one row")
    return float(np.mean([token_match(a, b) for a, b in zip(ours, twin, strict=True)]))


def row_cosines(ours: NDArray[np.floating], twin: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cosine of each row of one array with the same row of the other.

    Args:
        ours, twin: (n_rows, width).
    Returns:
        (n_rows,), in [-1, 1]; 1 where both rows are zero, 0 where one is.
    Raises:
        ValueError: shapes differ, or are not 2-D.
    """
    if ours.shape != twin.shape or ours.ndim != 2:
        raise ValueError(f"need two equal (n_rows, width) arrays, got {ours.shape} and {twin.shape}")
    a, b = ours.astype(np.float64), twin.astype(np.float64)
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.sum((a / norm_a[:, None]) * (b / norm_b[:, None]), axis=1)
    cosines = np.where((norm_a == 0) & (norm_b == 0), 1.0, np.nan_to_num(cosines, nan=0.0))
    return np.clip(cosines, -1.0, 1.0)


def embedding_cosine(ours: NDArray[np.floating], twin: NDArray[np.floating]) -> float:
    """Mean over rows of the cosine of pooled states, (n_rows, width) each."""
    return float(row_cosines(ours, twin).mean())


def centered_cosine(ours: NDArray[np.floating], twin: NDArray[np.floating]) -> float:
    """`embedding_cosine` with the twin's mean over rows taken off both.

    GPT-2's pooled states nearly share one direction, which makes the raw cosine of any two texts
    high (Ethayarajh 2019, arXiv:1909.00512); taking it off shows what is left.
    """
    mean = twin.astype(np.float64).mean(axis=0)
    return embedding_cosine(ours - mean, twin - mean)
