"""From the ledger's trials to the Pareto front: which trials count, their losses, the `front.json`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, compress
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.noise import Noise, Repeats, margins, noise_of
from orchestrator.analysis.pareto import hypervolume, pareto_mask
from orchestrator.analysis.stability import front_shares
from orchestrator.objectives import OBJECTIVES
from orchestrator.settings import SweepSettings
from trainables.values.results import TrialResult

REFERENCE_MARGIN = 0.1
"""Where none was fixed, the reference point lies so far beyond the worst counted trial, as a share of the range."""
REFERENCE = "reference_point"
"""Fact: the reference point in the objectives' own units, fixed once."""
N_FOR_REFERENCE = 5
"""Counted trials that fix the reference point; fewer do when the search ends."""
FIXED_MARGIN = 0.5
"""A fixed reference point lies beyond their worst by their range, and by at least this share of the worst value."""


STABLE_SHARE = 0.25
"""Trials off the front are named with it from this share of resamples on."""


@dataclass(frozen=True, kw_only=True)
class Front:
    """The trials of a sweep that no other dominates by more than the noise, see orchestrator.analysis.pareto.

    Attributes:
        objectives: names, in the order of each member's values.
        noise: of each objective. Where trials ran on several kinds of device, dominance takes the times of each kind
            by themselves; this is over all.
        reference_point: in the objectives' own units, None without members.
        hypervolume: dominated by the counted trials within the reference point, by plain dominance; one beyond it in an
            objective adds nothing. Summed over the kinds of device.
        members: trials by their first objective.
        groups: all counted trials, as far as they may be compared.
    """

    objectives: tuple[str, ...]
    noise: tuple[Noise, ...]
    reference_point: tuple[float, ...] | None = None
    hypervolume: float = 0.0
    members: tuple[TrialResult, ...] = ()
    groups: "tuple[Group, ...]" = field(default=(), repr=False, compare=False)

    @cached_property
    def keys(self) -> frozenset[str]:
        """Of the members."""
        return frozenset(map(attrgetter("key"), self.members))

    @cached_property
    def shares(self) -> Mapping[str, float]:
        """Key of each counted trial -> in what share of resamples it is on the front, see `front_shares`."""
        found: dict[str, float] = {}
        shared = [OBJECTIVES[name].source == "cost" for name in self.objectives]
        for group in self.groups:
            spreads = [(one.sd or 0.0, one.n_degrees) for one in group.noise]
            keys = map(attrgetter("key"), group.trials)
            found |= zip(keys, front_shares(group.table, spreads, shared).tolist(), strict=True)
        return found

    @cached_property
    def tied(self) -> Mapping[str, tuple[TrialResult, ...]]:
        """Key of each member -> the other members that are within the noise of it in every objective."""
        found: dict[str, tuple[TrialResult, ...]] = {}
        for group in self.groups:
            on = np.array([trial.key in self.keys for trial in group.trials])
            members, rows = list(compress(group.trials, on)), group.table[on]
            for trial, row in zip(members, rows, strict=True):
                near = (np.abs(rows - row) <= margins(group.noise)).all(axis=1)
                found[trial.key] = tuple(other for other in compress(members, near) if other.key != trial.key)
        return found

    @property
    def nearly(self) -> list[TrialResult]:
        """Trials off the front with a share of at least STABLE_SHARE, the most stable first."""
        trials = chain.from_iterable(group.trials for group in self.groups)
        off = [trial for trial in trials if trial.key not in self.keys and self.shares[trial.key] >= STABLE_SHARE]
        return sorted(off, key=lambda trial: (-self.shares[trial.key], trial.number))

    def to_dict(self) -> dict[str, Any]:
        """The content of front.json."""
        members = []
        for member in self.members:
            tied = [other.key for other in self.tied[member.key]]
            members.append(self._row(member) | {"tied_with": tied})
        return {
            "objectives": list(self.objectives),
            "noise": [one.to_dict() for one in self.noise],
            "reference_point": list(self.reference_point) if self.reference_point else None,
            "hypervolume": self.hypervolume,
            "members": members,
            "nearly": list(map(self._row, self.nearly)),
        }

    def _row(self, trial: TrialResult) -> dict[str, Any]:
        values = [objective_value(trial, name) for name in self.objectives]
        shown = {"key": trial.key, "config": trial.config.to_dict(), "values": values}
        return shown | {"front_share": self.shares[trial.key]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Counted trials within which every objective may be compared.

    Attributes:
        table: (n_trials, n_objectives), losses on the scale of their noise: of a time the logarithm.
        noise: of each objective.
    """

    trials: tuple[TrialResult, ...]
    table: NDArray[np.float64]
    noise: tuple[Noise, ...]

    @property
    def undominated(self) -> list[TrialResult]:
        """Those that no other one dominates by more than the noise."""
        return list(compress(self.trials, pareto_mask(self.table, margins(self.noise))))


def objective_value(trial: TrialResult, objective: str) -> float | None:
    """A trial's value of one objective in its own unit and sense, None where it has none.

    A 16-bit trial is its own baseline: its similarities are 1.
    """
    if OBJECTIVES[objective].source == "similarity":
        if trial.config.precision == "16bit":
            return 1.0
        return getattr(trial.similarity.quantized, objective).value if trial.similarity else None
    measured = trial.cost if OBJECTIVES[objective].source == "cost" else trial.history[-1] if trial.history else None
    return getattr(measured, objective) if measured and trial.history else None


def losses_of(trial: TrialResult, objectives: Sequence[str]) -> tuple[float, ...] | None:
    """All objectives as losses (the one place where maximised ones change sign), None if one is absent."""
    losses = []
    for name in objectives:
        value = objective_value(trial, name)
        if value is None or not math.isfinite(value):
            return None
        losses.append(value * OBJECTIVES[name].sign)
    return tuple(losses)


def dissimilarity(trial: TrialResult, min_similarity: float | None) -> float | None:
    """How far a trial may miss the similarity asked for (at most 0: kept); None while it is not known.

    Counted from the lower end of the cosine's 95 % interval, from the cosine where that is withheld; a 16-bit trial is
    its own baseline, exactly. Where none is asked for, all keep it, also one whose baseline does not fit the device.
    """
    if min_similarity is None:
        return -1.0
    if trial.config.precision == "16bit":
        return min_similarity - 1.0
    cosine = trial.similarity.quantized.embedding_cosine if trial.similarity else None
    return min_similarity - (cosine.value if cosine.low is None else cosine.low) if cosine else None


def is_candidate(trial: TrialResult) -> bool:
    """Whether a trial completed that the search took up, or needed as a baseline.

    Seed replicates measure candidates and are none: a front of the luckiest seeds would flatter.
    """
    return trial.state == "completed" and trial.is_of_search


def is_reused(trial: TrialResult) -> bool:
    """Whether a trial's result was taken from another sweep: it completed, and this sweep spent no time on it."""
    return trial.state == "completed" and trial.train_seconds is None and (trial.reason or "").startswith("reused")


def counted(trials: Sequence[TrialResult], settings: SweepSettings) -> list[tuple[TrialResult, tuple[float, ...]]]:
    """The candidates that keep the similarity asked for, each with its objectives as losses."""
    found = []
    for trial in filter(is_candidate, trials):
        losses = losses_of(trial, settings.objectives)
        gap = dissimilarity(trial, settings.min_similarity)
        if losses is not None and gap is not None and gap <= 0:
            found.append((trial, losses))
    return found


Counted = Sequence[tuple[TrialResult, tuple[float, ...]]]
"""See `counted`."""


def table_of(found: Counted) -> NDArray[np.float64]:
    """(n_trials, n_objectives), the losses of counted trials."""
    return np.array(list(map(itemgetter(1), found)))


def device_of(trial: TrialResult) -> str:
    """Kind of device that a trial's memory and time are of; "" before it was measured."""
    return trial.cost.device if trial.cost else ""


def comparable(found: Counted, settings: SweepSettings) -> list[Counted]:
    """Counted trials in groups within which every objective may be compared; the kind first met comes first.

    A step's time says nothing beside one on another kind of device: where it is an objective, trials of different
    kinds neither dominate each other nor share a hypervolume.
    """
    if not any(OBJECTIVES[name].is_timed for name in settings.objectives):
        return [found] if found else []
    groups: dict[str, list[tuple[TrialResult, tuple[float, ...]]]] = {}
    for trial, losses in found:
        groups.setdefault(device_of(trial), []).append((trial, losses))
    return list(groups.values())


def signs(settings: SweepSettings) -> NDArray[np.float64]:
    """Of each objective: a value times its sign is a loss, and the other way round."""
    return np.array([OBJECTIVES[name].sign for name in settings.objectives])


def fixed_reference(trials: Sequence[TrialResult], settings: SweepSettings) -> tuple[float, ...] | None:
    """A reference point from the first trials that count, wide enough for those to come; None without any.

    In the objectives' own units. Kept in the ledger and never changed after, so that hypervolumes of one sweep can
    be compared at any two moments.
    """
    found = counted(trials, settings)
    if not found:
        return None
    losses = table_of(found)
    worst, best = losses.max(axis=0), losses.min(axis=0)
    reference = worst + np.maximum(np.maximum(worst - best, FIXED_MARGIN * np.abs(worst)), 1e-9)
    return tuple((reference * signs(settings)).tolist())


def volume_of(found: Counted, settings: SweepSettings, reference: Sequence[float]) -> float:
    """Hypervolume of counted trials within a reference point in the objectives' own units, see Front."""
    corner = np.multiply(reference, signs(settings))
    return sum(hypervolume(table_of(group), corner) for group in comparable(found, settings))


def _group_of(group: Counted, trials: Sequence[TrialResult], settings: SweepSettings, repeats: Repeats | None) -> Group:
    """A group as dominance sees it; without repeats all noise is 0."""
    table, own = table_of(group), tuple(map(itemgetter(0), group))
    for column, name in enumerate(settings.objectives):
        if OBJECTIVES[name].is_timed:
            table[:, column] = np.log(table[:, column])
    devices = set(map(device_of, own))
    noise = _noise(trials, settings, repeats, devices.pop() if len(devices) == 1 else None)
    return Group(trials=own, table=table, noise=noise)


def _noise(
    trials: Sequence[TrialResult], settings: SweepSettings, repeats: Repeats | None, device: str | None
) -> tuple[Noise, ...]:
    """Of each objective; none without repeats."""
    if repeats is None:
        return tuple(Noise(objective=name) for name in settings.objectives)
    return noise_of(trials, settings.objectives, repeats, device)


def front_of(
    trials: Sequence[TrialResult],
    settings: SweepSettings,
    reference: Sequence[float] | None = None,
    repeats: Repeats | None = (),
) -> Front:
    """The front of the candidates that keep the similarity asked for.

    Args:
        reference: the reference point that was fixed for the sweep; by default one beyond the worst counted trial.
        repeats: measurements of time beside those of the trials, see orchestrator.analysis.noise; None takes no noise
            into account, neither of time nor of loss.
    """
    noise = _noise(trials, settings, repeats, None)
    found = counted(trials, settings)
    if not found:
        return Front(objectives=settings.objectives, noise=noise)
    if reference is None:
        losses = table_of(found)
        worst, best = losses.max(axis=0), losses.min(axis=0)
        spread = np.where(worst > best, worst - best, np.maximum(np.abs(worst), 1e-9))
        reference = (worst + REFERENCE_MARGIN * spread) * signs(settings)
    groups = tuple(_group_of(group, trials, settings, repeats) for group in comparable(found, settings))
    members = list(chain.from_iterable(group.undominated for group in groups))
    members.sort(key=lambda m: losses_of(m, settings.objectives) or ())
    return Front(
        objectives=settings.objectives,
        noise=noise,
        reference_point=tuple(np.asarray(reference, np.float64).tolist()),
        hypervolume=volume_of(found, settings, reference),
        members=tuple(members),
        groups=groups,
    )
