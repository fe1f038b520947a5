"""Simulated landscapes over the default space: what a trial of each point costs and how its loss falls.

Each kind says where the best trials lie, or what learning curves do; its numbers are drawn from a seed. A loss is drawn
once for each point and seed, so that every search meets the same trials. The best trials that there are stand in a
dense grid without noise: from its front come the reference point and the volume that a search is measured by.

The sizes are assumptions: tuning gains 1.4 nats, a rung at an eighth of the steps shows most of the fall. All trials
of a sweep share one seed and so one order of the rows: in tests/support/ledger_v2.db (a sweep of protocol 1) the losses
of ranks 2 to 16 lie within 0.004 of each other at every rung. So curves are regular in the kinds that are not about
them.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import exp, log, log2

import numpy as np

import search_spaces
from orchestrator.objectives import DEFAULT
from tests.bench.replay import Recorded, Row, Values, recorded
from trainables.models.families import gpt2
from trainables.values.config import rungs

SPACE = "pareto"
N_RATES = 15
"""Learning rates of the dense grid."""
UNTUNED_NATS = 3.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What the landscapes of a kind have in common; ranges are drawn from uniformly.

    Attributes:
        rate: where the best learning rate lies at the best rank and ratio.
        log2_rank, log2_ratio: where the best rank and the best alpha / rank lie.
        rate_per_rank, rate_per_ratio: change of log2 of the best rate with each doubling of them.
        rank_nats: what the rank farthest from the best one loses.
        cliff: log2 of the largest stable rate over the best one; beyond it a trial diverges.
        speed: how many times faster a loss falls for each doubling of the learning rate.
        late: share of the fall that comes after half of the steps, in the configs that fall late.
        jitter: standard deviation of the logarithm of what a point by itself does to that speed.
        rung_noise_nats, end_noise_nats: standard deviation of one evaluation before the end, and at it.
    """

    rate: tuple[float, float] = (1e-4, 1e-3)
    log2_rank: tuple[float, float] = (2, 6)
    log2_ratio: tuple[float, float] = (-1, 2)
    rate_per_rank: float = -0.1
    rate_per_ratio: float = -0.3
    rank_nats: float = 0.12
    cliff: float | None = None
    speed: float = 1.15
    late: float = 0.0
    jitter: float = 0.05
    rung_noise_nats: float = 0.003
    end_noise_nats: float = 0.002


KINDS: Mapping[str, Kind] = {
    "optimum in the middle": Kind(rate=(2.5e-4, 4e-4), log2_rank=(2.5, 3.5), log2_ratio=(0, 1)),
    "high rank, small rate": Kind(rate=(6e-5, 1e-4), log2_rank=(6, 6), rate_per_rank=-0.5, rank_nats=0.25),
    "small rate, small ratio": Kind(rate=(6e-5, 1e-4), log2_ratio=(-1, -0.5), rate_per_ratio=-0.6),
    "top of both": Kind(rate=(1.5e-3, 2e-3), log2_rank=(6, 6), log2_ratio=(1, 2), rate_per_rank=0.0, rank_nats=0.25),
    "cliff of divergence": Kind(rate=(3e-4, 1e-3), rate_per_rank=-0.4, rate_per_ratio=-0.8, cliff=0.5),
    "crossing curves": Kind(rate=(6e-5, 3e-4), speed=1.9, jitter=0.15),
    "late curves": Kind(late=0.5, jitter=0.15),
    "noisy curves": Kind(jitter=0.15, rung_noise_nats=0.04, end_noise_nats=0.011),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Landscape:
    """One drawn landscape.

    Attributes:
        log2_rate, log2_rank, log2_ratio: of the best point.
        width: doublings of the learning rate beside the best one that lose `rate_nats`.
        targets_nats, targets_size: of each choice of target modules: what it loses, and its parameters a rank (MiB).
        nf4_nats, dropout_nats: what they lose; less than nothing where they help.
        nf4_time, dropout_time: times the seconds of a step.
        nf4_saves_mib: memory.
    """

    seed: int
    kind: Kind
    names: tuple[str, ...]
    log2_rate: float
    log2_rank: float
    log2_ratio: float
    width: float
    rate_nats: float
    ratio_nats: float
    targets_nats: Mapping[str, float]
    targets_size: Mapping[str, float]
    nf4_nats: float
    dropout_nats: float
    nf4_time: float
    dropout_time: float
    nf4_saves_mib: float
    max_steps: int

    def cost(self, point: Mapping[str, object]) -> dict[str, float]:
        """Memory and time of a point's cost key."""
        is_nf4, has_dropout = point["precision"] == "nf4", bool(point["dropout"])
        size = self.targets_size[point["targets"]]
        mib = 1900 - self.nf4_saves_mib * is_nf4 + 4 * size * point["rank"] + 60 * size + 25 * has_dropout
        seconds = 0.04 * (1 + 0.12 * size + 0.002 * point["rank"])
        seconds *= self.nf4_time**is_nf4 * self.dropout_time**has_dropout
        return {"peak_memory_mib": mib, "seconds_per_step": seconds}

    def off_rate(self, point: Mapping[str, object]) -> float:
        """log2 of the learning rate over the best one at the point's rank and ratio."""
        best = self.log2_rate + self.kind.rate_per_rank * (log2(point["rank"]) - self.log2_rank)
        best += self.kind.rate_per_ratio * (log2(point["alpha_ratio"]) - self.log2_ratio)
        return log2(point["learning_rate"]) - best

    def end_nats(self, point: Mapping[str, object]) -> float:
        """Loss at full length without noise; infinite where training diverges."""
        off = self.off_rate(point)
        if self.kind.cliff is not None and off > self.kind.cliff:
            return float("inf")
        squared = (off / self.width) ** 2
        loss = 2.0 + self.rate_nats * squared / (1 + 0.2 * squared)
        loss += self.kind.rank_nats * (abs(log2(point["rank"]) - self.log2_rank) / 6) ** 1.5
        loss += self.ratio_nats * ((log2(point["alpha_ratio"]) - self.log2_ratio) / 3) ** 2
        loss += self.targets_nats[point["targets"]]
        return loss + self.nf4_nats * (point["precision"] == "nf4") + self.dropout_nats * bool(point["dropout"])

    def rows(self, values: Values) -> tuple[Row, ...]:
        """What each rung of a trial measures; of one that diverges, the last one says why."""
        point = dict(zip(self.names, values, strict=True))
        rng = np.random.default_rng([self.seed, zlib.crc32(repr(values).encode())])
        common, end = self._common(point), self.end_nats(point)
        if end == float("inf"):
            step = rungs(self.max_steps)[int(rng.integers(2))]
            return ({**common, "step": step, "train_loss_nats": None, "eval_loss_nats": None, "reason": "diverged"},)
        speed = 7 * self.kind.speed ** (log2(point["learning_rate"]) + 11.5) * exp(rng.normal(0, self.kind.jitter))
        falls_late = point["rank"] * self.targets_size[point["targets"]] > 8 and rng.random() < 0.7
        late = self.kind.late * rng.uniform(0.3, 1) * falls_late
        rows = []
        for step in rungs(self.max_steps):
            share = step / self.max_steps
            left = (1 - late) * (exp(-speed * share) - exp(-speed)) / (1 - exp(-speed)) + late * min(1, 2 - 2 * share)
            noise = self.kind.end_noise_nats if share == 1 else self.kind.rung_noise_nats
            loss = end + 0.5 * (UNTUNED_NATS - end) * left + rng.normal(0, noise)
            rows.append({**common, "step": step, "train_loss_nats": loss, "eval_loss_nats": loss, "reason": None})
        return tuple(rows)

    def _common(self, point: Mapping[str, object]) -> dict[str, object]:
        cost = self.cost(point)
        times = dict.fromkeys(("seconds_per_step_p10", "seconds_per_step_p90"), cost["seconds_per_step"])
        own = {"reserved_memory_mib": cost["peak_memory_mib"], "tokens_per_second": 1024 / cost["seconds_per_step"]}
        return {**cost, **times, **own, "device": "simulated"}


class Rungs(dict[Values, tuple[Row, ...]]):
    """The trials of a landscape, drawn when they are looked at."""

    def __init__(self, landscape: Landscape) -> None:
        super().__init__()
        self._landscape = landscape

    def __missing__(self, values: Values) -> tuple[Row, ...]:
        self[values] = self._landscape.rows(values)
        return self[values]


@cache
def space() -> search_spaces.Space:
    """The default space, for GPT-2."""
    return search_spaces.load(SPACE).for_family(gpt2.FAMILY)


def draw(kind: str, seed: int) -> Landscape:
    """A landscape of a kind; the same for the same seed."""
    rng = np.random.default_rng([seed, sorted(KINDS).index(kind)])
    shape, choices = KINDS[kind], space().parameters["targets"].choices
    size = dict(zip(choices, (1.0, 1.4, 2.6, 4.0), strict=True))
    low, high = shape.rate
    return Landscape(
        seed=seed,
        kind=shape,
        names=tuple(space().parameters),
        log2_rate=log2(exp(rng.uniform(log(low), log(high)))),
        log2_rank=rng.uniform(*shape.log2_rank),
        log2_ratio=rng.uniform(*shape.log2_ratio),
        width=rng.uniform(1.5, 2.5),
        rate_nats=rng.uniform(0.1, 0.2),
        ratio_nats=rng.uniform(0.01, 0.05),
        targets_nats=dict(zip(choices, np.sort(rng.uniform(0, 0.12, len(choices)))[::-1].tolist(), strict=True)),
        targets_size=size,
        nf4_nats=rng.uniform(0.003, 0.04),
        dropout_nats=rng.uniform(-0.01, 0.01),
        nf4_time=rng.uniform(1.1, 1.6),
        dropout_time=rng.uniform(1.05, 1.15),
        nf4_saves_mib=rng.uniform(300, 600),
        max_steps=space().fixed["max_steps"],
    )


def table(landscape: Landscape) -> Recorded:
    """A landscape as a table of all its trials, with what there is to find."""
    parameters = space().parameters
    rates = np.geomspace(parameters["learning_rate"].min, parameters["learning_rate"].max, N_RATES).tolist()
    searched = [rates if name == "learning_rate" else p.choices for name, p in parameters.items()]
    ends = {}
    for values in product(*searched):
        point = dict(zip(landscape.names, values, strict=True))
        loss = landscape.end_nats(point)
        if loss < float("inf"):
            ends[values] = ({**landscape.cost(point), "eval_loss_nats": loss, "step": 0, "reason": None},)
    known = recorded(landscape.names, ends)
    assert set(DEFAULT) <= ends[next(iter(ends))][0].keys()
    return replace(known, rungs=Rungs(landscape))
