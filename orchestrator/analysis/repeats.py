"""What a finalist's runs under several seeds come to: means with intervals, and the smallest sufficient rank. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev
from typing import Literal

from orchestrator.analysis.finalists import N_SEEDS, fresh_runs
from orchestrator.analysis.front import objective_value
from orchestrator.analysis.sufficient_rank import (
    MIN_SEEDS,
    SufficientRank,
    by_group,
    sufficient_rank,
    t_quantile,
)
from orchestrator.objectives import OBJECTIVES
from orchestrator.settings import SweepSettings
from trainables.values.config import Precision
from trainables.values.findings import MIN_GROUPS, TestEvaluation
from trainables.values.results import TrialResult

Rows = Literal["test", "validation"]
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One objective of one finalist.

    Attributes:
        low, high: 95 % t-interval of the mean over seeds, or p10 and p90 of a step's time; None where there is none.
        n_seeds: runs behind it; 0 for what is the same for all seeds.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n_seeds: int = 1


def over_seeds(values: Sequence[float]) -> Figure:
    """Mean and 95 % interval mean +- t(n - 1) s / sqrt(n); of a single value no interval.

    >>> over_seeds([1.0])
    Figure(value=1.0, low=None, high=None, n_seeds=1)
    """
    n, middle = len(values), mean(values)
    if n < 2:
        return Figure(value=middle)
    reach = t_quantile(n - 1, (1 + CONFIDENCE) / 2) * stdev(values) / sqrt(n)
    return Figure(value=middle, low=middle - reach, high=middle + reach, n_seeds=n)


def rows_of(runs: Sequence[TrialResult]) -> Rows:
    """The rows on which all runs of a finalist can be put side by side: the report's where all were evaluated."""
    return "test" if all(run.test_evaluation for run in runs) else "validation"


def figure(runs: Sequence[TrialResult], objective: str) -> Figure | None:
    """An objective over a finalist's runs, its own first; quality on `rows_of` them. None where a run has no value."""
    cost = runs[0].cost
    if OBJECTIVES[objective].source == "cost":
        if OBJECTIVES[objective].is_timed and cost:
            low, high = getattr(cost, f"{objective}_p10"), getattr(cost, f"{objective}_p90")
            return Figure(value=getattr(cost, objective), low=low, high=high, n_seeds=0)
        value = objective_value(runs[0], objective)
        return None if value is None else Figure(value=value, n_seeds=0)
    if OBJECTIVES[objective].source == "similarity" and runs[0].config.precision == "16bit":
        return Figure(value=1.0, n_seeds=0)  # its own baseline
    rows, known = rows_of(runs), []
    for run in runs:
        value = _quality(run, objective, rows)
        if value is not None:
            known.append(value)
    return over_seeds(known) if known else None


def _quality(run: TrialResult, objective: str, rows: Rows) -> float | None:
    if rows == "validation" or run.test_evaluation is None:
        return objective_value(run, objective)
    if objective == "eval_loss_nats":
        return run.test_evaluation.eval_loss_nats
    comparison = run.test_evaluation.comparison
    return getattr(comparison.quantized, objective).value if comparison else None


def smallest_sufficient_rank(
    precision: Precision, finalists: Sequence[TrialResult], trials: Sequence[TrialResult], settings: SweepSettings
) -> SufficientRank:
    """The rule of orchestrator.analysis.sufficient_rank, on the test rows, for the best config of each rank.

    On runs under fresh seeds alone: that of the search took part in choosing the config. Rows of equal instruction are
    one; a ledger that kept no groups has each row for itself.
    """
    if settings.finalist_seeds < MIN_SEEDS:
        return _undetermined(
            f"it takes {MIN_SEEDS} fresh seeds of each rank, and the sweep asked for {settings.finalist_seeds} "
            f"run{'' if settings.finalist_seeds == 1 else 's'} of each finalist (--finalist-seeds)"
        )
    evaluated = [t for t in finalists if t.config.precision == precision and t.test_evaluation and t.history]
    best: dict[int, TrialResult] = {}
    for trial in sorted(evaluated, key=lambda t: (t.history[-1].eval_loss_nats, t.number)):
        best.setdefault(trial.config.rank, trial)
    if not best:
        return _undetermined("no finalist at this precision was evaluated on the test rows")
    by_seed = {rank: _by_seed(trial, trials) for rank, trial in best.items()}
    shared = sorted(set.intersection(*map(set, by_seed.values())))
    rows = {rank: [runs[seed] for seed in shared] for rank, runs in by_seed.items()}
    return sufficient_rank_of(rows, next(iter(best.values())).test_evaluation)


def sufficient_rank_of(runs: Mapping[int, Sequence[TestEvaluation]], like: TestEvaluation) -> SufficientRank:
    """The rule on evaluated runs by rank, paired by their places; undetermined with fewer than MIN_GROUPS groups.

    Args:
        like: any evaluation on the same rows, of the same precision.
    """
    groups = like.row_groups or range(len(like.row_tokens))
    tokens = by_group(like.row_tokens, groups)
    if len(tokens) < MIN_GROUPS:
        few = f"{len(tokens)} groups of equal instruction are too few for an interval, which takes {MIN_GROUPS}"
        return _undetermined(few)
    losses = {rank: [by_group(run.row_nats, groups) for run in of_rank] for rank, of_rank in runs.items()}
    untuned = by_group(like.untuned_row_nats, groups)
    return sufficient_rank(losses, row_tokens=tokens, untuned_row_nats=untuned)


def _undetermined(why: str) -> SufficientRank:
    return SufficientRank(rank=None, reason=f"undetermined: {why}", ranks=())


def _by_seed(finalist: TrialResult, trials: Sequence[TrialResult]) -> Mapping[int, TestEvaluation]:
    """Evaluations of its runs under fresh seeds, by how far their seed is after the finalist's own."""
    found = {}
    for run in fresh_runs(finalist, trials):
        if run.test_evaluation:
            found[(run.config.seed - finalist.config.seed) % N_SEEDS] = run.test_evaluation
    return found
