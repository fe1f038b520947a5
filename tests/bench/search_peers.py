"""Searches by others' rules, which the bench `search` compares with ours over any space.

Optuna's own TPE as its page shows it for several objectives; the rule of OptunaHub's multi_metric_pruner, which is
written down here from its description; MOASHA's rule from its paper. None of them runs baselines, and none is told
of memory or time before a trial begins.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

from orchestrator.objectives import DEFAULT
from search_spaces import Parameter, Space
from tests.bench.replay import Job, Row

N_BEFORE_MEDIAN = 5
"""Ended trials before Optuna's MedianPruner stops any: its own default."""
MOASHA_ETA = 2
"""The rungs are an eighth, a quarter and a half of the steps: each twice the one before."""


def _at_rung(row: Row) -> tuple[float, ...]:
    return tuple(float(row[name]) for name in DEFAULT)


class Tpe:
    """Optuna's TPESampler over all objectives as it comes, with a stopping rule or without.

    Args:
        stops: told the step and all objectives at each rung before the last, of a trial by its number.
    """

    def __init__(self, space: Space, seed: int, rule: "ParetoRankMedian | None" = None) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space_of = {name: parameter.in_optuna() for name, parameter in space.parameters.items()}
        self._study = optuna.create_study(
            directions=["minimize"] * len(DEFAULT), sampler=optuna.samplers.TPESampler(seed=seed)
        )
        self._rule = rule

    def ask(self, now: float) -> Job | None:
        trial = self._study.ask(self._space_of)
        return Job(tuple(trial.params.values()), trial)

    def report(self, job: Job, row: Row | None, *, last: bool) -> bool:
        if row["reason"]:  # as pruned: told as failed, the sampler would go on asking around it
            self._study.tell(job.own, state=optuna.trial.TrialState.PRUNED)
        elif last:
            self._study.tell(job.own, _at_rung(row))
        elif self._rule and self._rule.stops(job.own.number, row["step"], _at_rung(row)):
            self._study.tell(job.own, state=optuna.trial.TrialState.PRUNED)
        else:
            return True
        if self._rule:
            self._rule.ended(job.own.number)
        return last and not row["reason"]


class ParetoRankMedian:
    """The rule of OptunaHub's multi_metric_pruner (S. Watanabe; `joint=True`) over Optuna's MedianPruner.

    At each step all trials that came there are ranked by non-dominated sorting, and the ranks stand in for the values
    of one objective: a trial ends whose best rank so far is worse than the median of the ended trials' ranks at its
    step.
    """

    def __init__(self) -> None:
        self._at: dict[int, dict[int, tuple[float, ...]]] = {}  # step -> trial -> objectives
        self._ended: set[int] = set()

    def ended(self, number: int) -> None:
        self._ended.add(number)

    def stops(self, number: int, step: int, losses: tuple[float, ...]) -> bool:
        """Whether a trial ends at this step; remembers what it showed."""
        self._at.setdefault(step, {})[number] = losses
        if len(self._ended) < N_BEFORE_MEDIAN:
            return False
        best, others = np.inf, np.zeros(0)
        for seen in self._at.values():
            if number in seen:
                ranks = dict(zip(seen, nondomination_ranks(list(seen.values())), strict=True))
                best = min(best, ranks[number])
        ranks = dict(zip(self._at[step], nondomination_ranks(list(self._at[step].values())), strict=True))
        others = np.array([rank for other, rank in ranks.items() if other in self._ended])
        return len(others) > 0 and best > np.median(others)


def nondomination_ranks(losses: Sequence[Sequence[float]]) -> list[int]:
    """0 for rows that no other dominates, 1 for those that only these do, and so on (Deb et al. 2002, III.A)."""
    rows = np.array(losses)
    ranks, left, rank = np.zeros(len(rows), dtype=int), np.arange(len(rows)), 0
    while len(left):
        own = rows[left]
        worse = (own[:, None] <= own).all(axis=2) & (own[:, None] < own).any(axis=2)
        is_dominated = worse.any(axis=0)
        ranks[left[~is_dominated]] = rank
        left, rank = left[is_dominated], rank + 1
    return ranks.tolist()


def epsilon_net(losses: NDArray[np.float64]) -> list[int]:
    """Places of the rows in the order of an epsilon-net (Schmucker et al. 2021, arXiv:2106.12639, section 3.2).

    First the row of the least first objective, then, again and again, the one farthest from all before it, with each
    objective scaled to its range.
    """
    spread = np.ptp(losses, axis=0)
    scaled = (losses - losses.min(axis=0)) / np.where(spread > 0, spread, 1)
    order = [int(np.argmin(scaled[:, 0]))]
    nearest = np.linalg.norm(scaled - scaled[order[0]], axis=1)
    while len(order) < len(losses):
        nearest[order] = -1
        order.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, np.linalg.norm(scaled - scaled[order[-1]], axis=1))
    return order


class Moasha:
    """MOASHA (Schmucker et al. 2021, arXiv:2106.12639): random points, asynchronous halving by non-dominated rank.

    A trial goes on from a rung where it is in the best 1 / eta of those that came there: by non-dominated rank, within
    a rank by epsilon-net.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self._points = Points(space, seed)
        self._at: dict[int, list[tuple[float, ...]]] = {}

    def ask(self, now: float) -> Job | None:
        return self._points.ask(now)

    def report(self, job: Job, row: Row | None, *, last: bool) -> bool:
        if row["reason"] or last:
            return not row["reason"]
        seen = self._at.setdefault(row["step"], [])
        seen.append(_at_rung(row))
        ranks, losses = np.array(nondomination_ranks(seen)), np.array(seen)
        order: list[int] = []
        for rank in range(ranks.max() + 1):
            places = np.flatnonzero(ranks == rank)
            order += places[epsilon_net(losses[places])].tolist()
        return order.index(len(seen) - 1) < len(seen) / MOASHA_ETA


class Points:
    """Points at random over the whole space, all at full length; a point comes once."""

    def __init__(self, space: Space, seed: int) -> None:
        self._parameters: Mapping[str, Parameter] = space.parameters
        self._n_points = space.n_points
        self._random = Random(seed)
        self._seen: set[tuple[Any, ...]] = set()

    def ask(self, now: float) -> Job | None:
        while self._n_points is None or len(self._seen) < self._n_points:
            values = tuple(self._value(parameter) for parameter in self._parameters.values())
            if values not in self._seen:
                self._seen.add(values)
                return Job(values, None)
        return None

    def report(self, job: Job, row: Row | None, *, last: bool) -> bool:
        return True

    def _value(self, parameter: Parameter) -> Any:
        if parameter.choices:
            return self._random.choice(parameter.choices)
        low, high = parameter.min, parameter.max
        if parameter.distribution == "log_uniform_values":
            return low * (high / low) ** self._random.random()
        if parameter.distribution == "int_uniform":
            return self._random.randint(int(low), int(high))
        return self._random.uniform(low, high)
