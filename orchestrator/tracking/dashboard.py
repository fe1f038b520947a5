"""A sweep in optuna-dashboard: its study, written from the ledger into an SQLite file of its own."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator import settings as settings_file
from orchestrator.analysis.front import dissimilarity, is_reused, objective_value
from orchestrator.ledger import Ledger
from orchestrator.ledger.rows import Entry
from orchestrator.objectives import OBJECTIVES
from orchestrator.search.proposer import BROKEN, distribution, is_within
from orchestrator.settings import SweepSettings
from orchestrator.settings.command import python
from orchestrator.tracking.ui import refuse_port
from trainables.values.config import FINAL_STATES, State
from trainables.values.errors import ConfigError

logger = logging.getLogger(__name__)

HOST, PORT = "127.0.0.1", 8080
FILE = "optuna.db"
"""In a sweep's folder. Written anew each time: neither the search nor anything else reads it."""


def serve(name: str, root: Path, port: int) -> None:
    """Write a sweep's study and show it on the loopback address until interrupted.

    Raises:
        ConfigError: there is no such sweep, nothing can listen on the port, or optuna-dashboard is not installed.
    """
    folder = settings_file.sweep_folder(name, root)
    settings = settings_file.load(folder)
    refuse_port(HOST, port)
    if find_spec("optuna_dashboard") is None:
        raise ConfigError(f"it needs optuna-dashboard: {python()} -m pip install -c constraints.txt optuna-dashboard")
    from optuna_dashboard import run_server

    ledger = Ledger(folder / "ledger.db", read_only=True)
    try:
        study = write(settings, ledger.entries(), folder / FILE)
    finally:
        ledger.close()
    page = f"http://{HOST}:{port}/dashboard/studies/{study._study_id}"
    logger.info("optuna-dashboard: %s  (Ctrl-C ends it)", page)
    run_server(study._storage, host=HOST, port=port)


def write(settings: SweepSettings, entries: Sequence[Entry], path: Path) -> Any:
    """The study of a sweep: a trial for each that ended and stands for a point of the space.

    Objectives are in their own units and senses; a trial without all of them is pruned or failed. The constraint is
    the similarity to the 16-bit baseline that was asked for.

    Returns:
        The optuna.Study, in an SQLite file that replaces the one before.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path.unlink(missing_ok=True)
    senses = [OBJECTIVES[name].direction for name in settings.objectives]
    study = optuna.create_study(study_name=settings.name, storage=f"sqlite:///{path.resolve()}", directions=senses)
    study.set_metric_names(list(settings.objectives))
    known = {name: distribution(parameter) for name, parameter in settings.space.parameters.items()}
    within = (e for e in entries if all(n in e.params and is_within(d, e.params[n]) for n, d in known.items()))
    study.add_trials([_trial(entry, known, settings) for entry in within if entry.result.state in FINAL_STATES])
    return study


def _trial(entry: Entry, distributions: dict[str, Any], settings: SweepSettings) -> Any:
    from optuna.trial import FrozenTrial

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


def _state(state: State, *, has_all: bool) -> Any:
    from optuna.trial import TrialState

    if state == "completed" and has_all:
        return TrialState.COMPLETE
    return TrialState.PRUNED if state in ("completed", "pruned") else TrialState.FAIL


def _time(seconds: float | None) -> datetime:
    """As Optuna keeps it: local time without a zone."""
    return datetime.fromtimestamp(seconds or 0.0, UTC).astimezone().replace(tzinfo=None)
