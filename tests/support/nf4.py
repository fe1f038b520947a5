"""NF4 in NumPy, from the papers alone.

The code book comes from quantiles of the normal distribution (Dettmers et al. 2023, arXiv:2305.14314, section 3 and
appendix E), the block constants from dynamic tree quantization (Dettmers et al. 2022, arXiv:2110.02861, section 2.1).
"""

from statistics import NormalDist

import numpy as np

BLOCK, NESTED_BLOCK = 64, 256


def nf4_code_book() -> np.ndarray:
    """The 16 levels: 8 quantiles under and 9 from 0 on, 0 in both, scaled into [-1, 1]."""
    outermost = 1 - (1 / 30 + 1 / 32) / 2  # between the outer quantiles of 2**3 and 2**3 - 1 levels a side
    quantile = NormalDist().inv_cdf
    negative = [-quantile(p) for p in np.linspace(outermost, 0.5, 8)[:-1]]
    positive = [quantile(p) for p in np.linspace(outermost, 0.5, 9)[:-1]]
    levels = np.array(sorted([*negative, 0.0, *positive]))
    return levels / levels.max()


def dynamic_tree_levels() -> np.ndarray:
    """Signed 8-bit dynamic tree: k zero bits give 10**-k, the bits left a linear fraction of it."""
    levels = [0.0, 1.0]
    for n_zeros in range(7):
        edges = np.linspace(0.1, 1.0, 2 ** (6 - n_zeros) + 1)
        centers = 10.0**-n_zeros * (edges[:-1] + edges[1:]) / 2
        levels += [*centers, *-centers]
    return np.array(sorted(levels))


def blocks_of(values: np.ndarray, size: int) -> np.ndarray:
    """(n,) -> (n / size rounded up, size), padded with zeros."""
    return np.pad(values, (0, -len(values) % size)).reshape(-1, size)


def nearest(values: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest level of each value, and where it is clear: float32 may round near-ties either way."""
    midpoints = (levels[:-1] + levels[1:]) / 2
    clear = np.abs(values[..., None] - midpoints).min(axis=-1) > 2e-5
    return levels[np.abs(values[..., None] - levels).argmin(axis=-1)], clear


def double_quantized(absmax: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Block constants after 8-bit quantization around their mean, in blocks of 256."""
    mean = absmax.mean()
    nested = blocks_of(absmax - mean, NESTED_BLOCK)
    scale = np.abs(nested).max(axis=1, keepdims=True)
    level, clear = nearest(nested / scale, dynamic_tree_levels())
    return (level * scale + mean).ravel()[: len(absmax)], clear.ravel()[: len(absmax)]


def nf4_with_double_quantization(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is left of a weight, (n / 64, 64), and where that is clear."""
    blocks = blocks_of(weight.astype(np.float64).ravel(), BLOCK)
    absmax = np.abs(blocks).max(axis=1)
    level, clear = nearest(blocks / absmax[:, None], nf4_code_book())
    constant, constant_clear = double_quantized(absmax)
    return level * constant[:, None], clear & constant_clear[:, None]
