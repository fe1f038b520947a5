"""The smallest rank that is good enough, by a non-inferiority rule that also answers "undetermined".

Pure: losses by rank, seed and row in, an answer with its reason out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from operator import itemgetter
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

MARGIN_SHARE = 0.02
"""How much of what tuning gains (untuned loss - best loss) a sufficient rank may lose."""

MIN_SEEDS = 3
LEVEL = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLoss:
    """One rank beside the rank that it comes off worst against.

    Attributes:
        n_seeds: trials of this rank.
        loss_nats: token-weighted mean over rows, mean over the seeds that all ranks have.
        against: that other rank.
        lower_nats, upper_nats: one-sided 95 % bounds of loss(rank) - loss(against), the margin's own noise included.
        margin_nats: what the rank may lose to it, a share of untuned loss - loss(against).

    The last four are None where nothing was compared.
    """

    rank: int
    n_seeds: int
    loss_nats: float
    against: int | None = None
    lower_nats: float | None = None
    upper_nats: float | None = None
    margin_nats: float | None = None

    @property
    def verdict(self) -> Literal["sufficient", "insufficient", "unclear"]:
        """Shown to keep within the margin of every other rank, shown not to, or neither."""
        if self.margin_nats is None or self.lower_nats <= self.margin_nats < self.upper_nats:
            return "unclear"
        return "sufficient" if self.upper_nats <= self.margin_nats else "insufficient"


@dataclass(frozen=True, slots=True, kw_only=True)
class SufficientRank:
    """The rule's answer.

    Attributes:
        rank: the smallest sufficient one among those tried; None is "undetermined".
        reason: one sentence.
        ranks: what it rests on, by rank.
    """

    rank: int | None
    reason: str
    ranks: tuple[RankLoss, ...]


def sufficient_rank(
    row_nats: Mapping[int, ArrayLike],
    *,
    row_tokens: ArrayLike,
    untuned_row_nats: ArrayLike,
    margin_share: float = MARGIN_SHARE,
) -> SufficientRank:
    """Find the smallest rank r with loss(r) - loss(best) <= margin_share * (untuned - loss(best)).

    The truly best rank is not known, so r must be shown to keep the inequality against every other
    rank; as all of them must be shown, each is tested at the full level (intersection-union test, Berger 1982,
    Technometrics 24, 295), and choosing the best from the same losses costs nothing. Ranks are tried from
    the largest down, past those shown to be insufficient, until one is unclear: a fixed sequence of tests
    (Dmitrienko & D'Agostino 2013, doi:10.1002/sim.5990), so that trying several does not add up their
    errors either. About 1 answer in 20 is too small at worst, see tests/bench/rank_rule.py.

    Args:
        row_nats: rank -> (n_seeds, n_rows) summed loss of each row, of the best config of that rank; ranks are paired
            by row and by place of the seed, and seeds that not all ranks have are left out. The seeds must have taken
            no part in choosing the config; rows of equal instruction are to be summed to one.
        row_tokens: (n_rows,), response tokens of each row.
        untuned_row_nats: (n_rows,), summed loss of the base without an adapter.
        margin_share: of what tuning gains, from 0 to 1.
    Raises:
        ValueError: fewer than 2 rows, shapes that do not fit, or values that are not finite.
    """
    tokens, untuned = np.asarray(row_tokens, np.float64), np.asarray(untuned_row_nats, np.float64)
    losses = {rank: np.asarray(row_nats[rank], np.float64) for rank in sorted(row_nats)}
    _check(losses, tokens, untuned)
    paired, table = _paired(losses, tokens)
    untuned_nats = float(untuned.sum() / tokens.sum())
    obstacle = _obstacle(table, untuned_nats)
    if obstacle:
        return SufficientRank(rank=None, reason=f"undetermined: {obstacle}", ranks=table)
    table = tuple(_against_worst(row, table, paired, tokens, untuned, margin_share) for row in table)
    return _answer(table, margin_share)


def t_quantile(n_degrees: int, level: float) -> float:
    """The `level` quantile of Student's t distribution."""
    from scipy.special import stdtrit  # slow to import; a report without seed replicates does without

    return float(stdtrit(n_degrees, level))


def by_group(values: ArrayLike, groups: ArrayLike) -> Floats:
    """Sums over the rows of each group: (n_groups,)."""
    _, group_of_row = np.unique(groups, return_inverse=True)
    return np.bincount(group_of_row, weights=np.asarray(values, np.float64))


def _paired(losses: Mapping[int, Floats], tokens: Floats) -> tuple[dict[int, Floats], tuple[RankLoss, ...]]:
    """Losses of the seeds that all ranks have, and what they come to."""
    n_paired = min(map(len, losses.values()), default=0)
    paired, table = {}, []
    for rank, loss in losses.items():
        paired[rank] = loss[:n_paired]
        mean_nats = float(paired[rank].mean(axis=0).sum() / tokens.sum())
        table.append(RankLoss(rank=rank, n_seeds=len(loss), loss_nats=mean_nats))
    return paired, tuple(table)


def upper_bound(row_nats: Floats, row_tokens: Floats) -> float:
    """95 % upper bound of a token-weighted mean over random seeds and random rows.

    With the seeds' means m_s and the rows' means over seeds r_i (linearised for the token weights), seeds and rows
    crossed: sqrt(t(n_seeds - 1)^2 * V_seeds + t(n_rows - 1)^2 * V_rows) above the mean, where
    V_seeds = var(m_s) / n_seeds and V_rows = (var(r_i) - var(interaction) / n_seeds) / n_rows, at least 0, so that the
    interaction counts once, among the seeds. Each part has the t quantile of its own degrees of freedom, as in
    Cochran's solution of the Behrens-Fisher problem (1964, Biometrics 20, 191); Satterthwaite's degrees of
    freedom exceed the stated error with 3 seeds.

    Args:
        row_nats: (n_seeds, n_rows), sums over each row's tokens; at least 2 of each.
        row_tokens: (n_rows,).
    """
    n_seeds, n_rows = row_nats.shape
    mean = row_nats.mean(axis=0).sum() / row_tokens.sum()
    shares = (row_nats - mean * row_tokens) / row_tokens.mean()  # (n_seeds, n_rows), mean 0
    of_seeds, of_rows = shares.mean(axis=1), shares.mean(axis=0)
    interaction = shares - of_seeds[:, None] - of_rows
    mean_square = np.sum(interaction**2) / ((n_seeds - 1) * (n_rows - 1))
    variance_seeds = of_seeds.var(ddof=1) / n_seeds
    variance_rows = max(of_rows.var(ddof=1) - mean_square / n_seeds, 0.0) / n_rows
    t_seeds, t_rows = t_quantile(n_seeds - 1, LEVEL), t_quantile(n_rows - 1, LEVEL)
    return float(mean + sqrt(t_seeds**2 * variance_seeds + t_rows**2 * variance_rows))


def _check(losses: Mapping[int, Floats], tokens: Floats, untuned: Floats) -> None:
    if tokens.ndim != 1 or len(tokens) < 2 or not (tokens > 0).all():
        raise ValueError(f"row_tokens must be at least 2 positive counts, got shape {tokens.shape}")
    named = {"untuned": untuned[None]}
    for rank, loss in losses.items():
        named[f"rank {rank}"] = loss
    for name, values in named.items():
        if values.ndim != 2 or values.shape[1] != len(tokens):
            raise ValueError(f"{name}: need one loss for each of {len(tokens)} rows, got shape {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: losses must be finite")


def _obstacle(table: Sequence[RankLoss], untuned_nats: float) -> str | None:
    """Why there is nothing to compare, or None."""
    if len(table) < 2:
        return f"it takes at least 2 ranks to compare, got {len(table)}"
    few = [f"rank {row.rank} has {row.n_seeds}" for row in table if row.n_seeds < MIN_SEEDS]
    if few:
        return f"every rank needs at least {MIN_SEEDS} fresh seeds; {', '.join(few)}"
    best = min(table, key=lambda row: row.loss_nats)
    if best.loss_nats >= untuned_nats:
        return (
            f"tuning gained nothing: the best rank, {best.rank}, has a loss of {best.loss_nats:.4f} nats, "
            f"the untuned base {untuned_nats:.4f}"
        )
    return None


def _against_worst(
    row: RankLoss,
    table: Sequence[RankLoss],
    losses: Mapping[int, Floats],
    tokens: Floats,
    untuned: Floats,
    share: float,
) -> RankLoss:
    """Fill in the comparison with the rank that this one may miss by most."""

    def beyond_margin(other: RankLoss) -> Floats:
        return losses[row.rank] - (1 - share) * losses[other.rank] - share * untuned

    others = [other for other in table if other.rank != row.rank]
    uppers = [upper_bound(beyond_margin(other), tokens) for other in others]
    upper, other = max(zip(uppers, others, strict=True), key=itemgetter(0))
    margin = share * (float(untuned.sum() / tokens.sum()) - other.loss_nats)
    return replace(
        row,
        against=other.rank,
        lower_nats=margin - upper_bound(-beyond_margin(other), tokens),
        upper_nats=margin + upper,
        margin_nats=margin,
    )


def _answer(table: tuple[RankLoss, ...], share: float) -> SufficientRank:
    """Walk down from the largest rank to the last sufficient one before an unclear one."""
    found, stop = None, None
    for row in reversed(table):
        if row.verdict == "unclear":
            stop = row
            break
        if row.verdict == "sufficient":
            found = row.rank
    unclear = stop and (
        f"rank {stop.rank} may lose {stop.upper_nats:.4f} nats to rank {stop.against}, "
        f"with a margin of {stop.margin_nats:.4f}; more seeds would tell"
    )
    if found is None:
        return SufficientRank(rank=None, reason=f"undetermined: {unclear or 'no rank is sufficient'}", ranks=table)
    reason = f"rank {found} loses at most {100 * share:g} % of what tuning gains, against every other rank"
    return SufficientRank(rank=found, reason=f"{reason}; {unclear}" if unclear else reason, ranks=table)
