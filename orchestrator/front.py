"""From the ledger's trials to the Pareto front: which trials count, their losses, `front.json`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.pareto import hypervolume, pareto_mask
from orchestrator.settings import MAXIMISED, Objective, SweepSettings
from trainables.config import TrialResult

REFERENCE_MARGIN = 0.1
"""The reference point lies so far beyond the worst counted trial, as a share of the objective's range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """The non-dominated trials of a sweep.

    Attributes:
        objectives: names, in the order of each member's values.
        reference_point: in the objectives' own units, None without members.
        hypervolume: dominated by the members within the reference point.
        members: trials by their first objective.
    """

    objectives: tuple[Objective, ...]
    reference_point: tuple[float, ...] | None
    hypervolume: float
    members: tuple[TrialResult, ...]

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(member.key for member in self.members)

    def to_dict(self) -> dict[str, Any]:
        """The content of front.json."""
        return {
            "objectives": list(self.objectives),
            "reference_point": list(self.reference_point) if self.reference_point else None,
            "hypervolume": self.hypervolume,
            "members": [
                {"key": m.key, "config": m.config.to_dict(), "values": [objective_value(m, o) for o in self.objectives]}
                for m in self.members
            ],
        }


def objective_value(trial: TrialResult, objective: Objective) -> float | None:
    """A trial's value of one objective in its own unit and sense, None where it has none.

    A 16-bit trial is its own twin: its similarities are 1.
    """
    if objective in MAXIMISED:
        if trial.config.precision == "16bit":
            return 1.0
        return getattr(trial.similarity, objective) if trial.similarity else None
    return getattr(trial.history[-1], objective) if trial.history else None


def losses_of(trial: TrialResult, objectives: Sequence[Objective]) -> tuple[float, ...] | None:
    """All objectives as losses (the one place where maximised ones change sign), None if one is absent."""
    values = [objective_value(trial, objective) for objective in objectives]
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    return tuple(-v if o in MAXIMISED else v for v, o in zip(values, objectives, strict=True))  # type: ignore[operator, misc]


def dissimilarity(trial: TrialResult, min_similarity: float) -> float | None:
    """How far a trial misses the similarity asked for (at most 0: kept); None while it is not known."""
    cosine = objective_value(trial, "embedding_cosine")
    return None if cosine is None else min_similarity - cosine


def front_of(trials: Sequence[TrialResult], settings: SweepSettings) -> Front:
    """The front of the completed trials that keep the similarity asked for."""
    counted: list[tuple[TrialResult, tuple[float, ...]]] = []
    for trial in trials:
        losses = losses_of(trial, settings.objectives)
        gap = dissimilarity(trial, settings.min_similarity)
        if trial.state == "completed" and losses is not None and gap is not None and gap <= 0:
            counted.append((trial, losses))
    if not counted:
        return Front(objectives=settings.objectives, reference_point=None, hypervolume=0.0, members=())
    losses = np.array([losses for _, losses in counted])
    worst, best = losses.max(axis=0), losses.min(axis=0)
    spread = np.where(worst > best, worst - best, np.maximum(np.abs(worst), 1e-9))
    reference = worst + REFERENCE_MARGIN * spread
    members = [trial for (trial, _), on in zip(counted, pareto_mask(losses), strict=True) if on]
    members.sort(key=lambda m: losses_of(m, settings.objectives) or ())
    signs = [-1.0 if o in MAXIMISED else 1.0 for o in settings.objectives]
    return Front(
        objectives=settings.objectives,
        reference_point=tuple(float(r * s) for r, s in zip(reference, signs, strict=True)),
        hypervolume=hypervolume(losses, reference),
        members=tuple(members),
    )
