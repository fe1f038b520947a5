"""A sweep's ledger as an Optuna study in a file, to look at: neither the search nor anything else reads it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from orchestrator.analysis.front import dissimilarity, is_reused, objective_value
from orchestrator.objectives import OBJECTIVES
from orchestrator.search.points import is_within
from orchestrator.search.proposer import BROKEN
from trainables.values.config import FINAL_STATES, State

if TYPE_CHECKING:
    from orchestrator.ledger.rows import Entry
    from orchestrator.settings import SweepSettings


def write(settings: "SweepSettings", entries: "Sequence[Entry]", path: Path) -> optuna.Study:
    """The study of a sweep: a trial for each that ended and stands for a point of the space.

    Objectives are in their own units and senses; a trial without all of them is pruned or failed. The constraint is
    the similarity to the 16-bit baseline that was asked for.

    Returns:
        The optuna.Study, in an SQLite file that replaces the one before.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path.unlink(missing_ok=True)
    senses = [OBJECTIVES[name].direction for name in settings.objectives]
    study = optuna.create_study(study_name=settings.name, storage=f"sqlite:///{path.resolve()}", directions=senses)
    study.set_metric_names(list(settings.objectives))
    searched = {name: parameter.in_optuna() for name, parameter in settings.space.parameters.items()}
    trials = []
    for entry in entries:
        within = all(name in entry.params and is_within(d, entry.params[name]) for name, d in searched.items())
        if within and entry.result.state in FINAL_STATES:
            trials.append(_trial(entry, searched, settings))
    study.add_trials(trials)
    return study


def _trial(entry: "Entry", distributions: Mapping[str, BaseDistribution], settings: "SweepSettings") -> FrozenTrial:
    result = entry.result
    values = [objective_value(result, objective) for objective in settings.objectives]
    gap = dissimilarity(result, settings.min_similarity)
    attributes = {"trial": result.number, "key": result.key, "origin": result.origin, "state": result.state}
    attributes |= {"reason": result.reason} if result.reason else {}
    attributes |= {"reused": True} if is_reused(result) else {}
    state = _state(result.state, has_all=None not in values and gap is not None)
    return FrozenTrial(
        number=-1,  # given by the study, as is the id
        trial_id=-1,
        state=state,
        value=None,
        values=values if state.name == "COMPLETE" else None,
        datetime_start=_time(result.started_at or result.ended_at),
        datetime_complete=_time(result.ended_at or result.started_at),
        params={name: entry.params[name] for name in distributions},
        distributions=distributions,
        user_attrs=attributes,
        system_attrs={"constraints": [BROKEN if gap is None else gap]},
        intermediate_values={},
    )


def _state(state: State, *, has_all: bool) -> TrialState:
    if state == "completed" and has_all:
        return TrialState.COMPLETE
    return TrialState.PRUNED if state in ("completed", "pruned") else TrialState.FAIL


def _time(seconds: float | None) -> datetime:
    """As Optuna keeps it: local time without a zone."""
    return datetime.fromtimestamp(seconds or 0.0, UTC).astimezone().replace(tzinfo=None)
