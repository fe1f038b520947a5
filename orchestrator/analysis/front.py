"""From the ledger's trials to the Pareto front: which trials count, their losses, the noise, `front.json`."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import compress
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.pareto import hypervolume, pareto_mask
from orchestrator.objectives import OBJECTIVES
from orchestrator.settings import SweepSettings
from trainables.values.results import Cost, TrialResult

REFERENCE_MARGIN = 0.1
"""Where none was fixed, the reference point lies so far beyond the worst counted trial, as a share of the range."""
REFERENCE = "reference_point"
"""Fact: the reference point in the objectives' own units, fixed once."""
N_FOR_REFERENCE = 5
"""Counted trials that fix the reference point; fewer do when the search ends."""
FIXED_MARGIN = 0.5
"""A fixed reference point lies beyond their worst by their range, and by at least this share of the worst value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """The non-dominated trials of a sweep.

    Attributes:
        objectives: names, in the order of each member's values.
        epsilon: of each objective, in its own unit: differences up to it do not decide dominance. Where trials ran on
            several kinds of device, each kind has its own; this is over all.
        reference_point: in the objectives' own units, None without members.
        hypervolume: dominated by the members within the reference point; one beyond it in an objective adds nothing.
            Summed over the kinds of device.
        members: trials by their first objective.
        keys: theirs, made once: many a caller asks for each of its trials whether it is on the front.
    """

    objectives: tuple[str, ...]
    epsilon: tuple[float, ...]
    reference_point: tuple[float, ...] | None
    hypervolume: float
    members: tuple[TrialResult, ...]
    keys: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", frozenset(map(attrgetter("key"), self.members)))

    def to_dict(self) -> dict[str, Any]:
        """The content of front.json."""
        members = []
        for member in self.members:
            values = [objective_value(member, name) for name in self.objectives]
            members.append({"key": member.key, "config": member.config.to_dict(), "values": values})
        return {
            "objectives": list(self.objectives),
            "epsilon": list(self.epsilon),
            "reference_point": list(self.reference_point) if self.reference_point else None,
            "hypervolume": self.hypervolume,
            "members": members,
        }


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

    Counted from the lower end of the cosine's 95 % interval; a 16-bit trial is its own baseline, exactly. Where none is
    asked for, every trial keeps it, also one whose baseline does not fit the device.
    """
    if min_similarity is None:
        return -1.0
    if trial.config.precision == "16bit":
        return min_similarity - 1.0
    return min_similarity - trial.similarity.quantized.embedding_cosine.low if trial.similarity else None


def is_candidate(trial: TrialResult) -> bool:
    """Whether a trial completed that the search took up, or needed as a baseline.

    Seed replicates measure candidates and are none: a front of the luckiest seeds would flatter.
    """
    return trial.state == "completed" and trial.is_of_search


def is_reused(trial: TrialResult) -> bool:
    """Whether a trial's result was taken from another sweep: it completed, and this sweep spent no time on it."""
    return trial.state == "completed" and trial.train_seconds is None and (trial.reason or "").startswith("reused")


def noise_of(trials: Sequence[TrialResult], objectives: Sequence[str]) -> tuple[float, ...]:
    """Epsilon of each objective, in its own unit, over the candidates.

    Of time the median over cost keys of p90 - p10. All else is 0: the same trial again has the same
    peak memory to the byte and the same loss.
    """
    cells = {}
    for trial in filter(is_candidate, trials):
        if trial.cost:
            cells[trial.config.cost_key, trial.cost.device] = trial.cost
    return tuple(_spread(name, cells.values()) if OBJECTIVES[name].is_timed else 0.0 for name in objectives)


def _spread(objective: str, costs: Collection[Cost]) -> float:
    """Median over cost keys of p90 - p10 over steps."""
    ends = np.array(list(map(attrgetter(f"{objective}_p10", f"{objective}_p90"), costs)))
    return float(np.median(ends[:, 1] - ends[:, 0])) if len(ends) else 0.0


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


def _undominated(group: Counted, trials: Sequence[TrialResult], settings: SweepSettings) -> list[TrialResult]:
    """Of trials that may be compared, those that no other dominates by more than the noise on their devices."""
    own = list(map(itemgetter(0), group))
    devices = set(map(device_of, own))
    epsilon = noise_of([trial for trial in trials if device_of(trial) in devices], settings.objectives)
    return list(compress(own, pareto_mask(table_of(group), epsilon)))


def front_of(trials: Sequence[TrialResult], settings: SweepSettings, reference: Sequence[float] | None = None) -> Front:
    """The front of the candidates that keep the similarity asked for.

    Args:
        reference: the reference point that was fixed for the sweep; by default one beyond the worst counted trial.
    """
    epsilon = noise_of(trials, settings.objectives)
    found = counted(trials, settings)
    if not found:
        return Front(objectives=settings.objectives, epsilon=epsilon, reference_point=None, hypervolume=0.0, members=())
    if reference is None:
        losses = table_of(found)
        worst, best = losses.max(axis=0), losses.min(axis=0)
        spread = np.where(worst > best, worst - best, np.maximum(np.abs(worst), 1e-9))
        reference = (worst + REFERENCE_MARGIN * spread) * signs(settings)
    members: list[TrialResult] = []
    for group in comparable(found, settings):
        members += _undominated(group, trials, settings)
    members.sort(key=lambda m: losses_of(m, settings.objectives) or ())
    return Front(
        objectives=settings.objectives,
        epsilon=epsilon,
        reference_point=tuple(np.asarray(reference, np.float64).tolist()),
        hypervolume=volume_of(found, settings, reference),
        members=tuple(members),
    )
