"""How far a sweep is, derived from the trials of its ledger."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, get_args

from orchestrator.analysis.finalists import evaluations, wanted
from orchestrator.analysis.front import front_of, is_candidate, is_reused, objective_value
from orchestrator.analysis.moment import Moment, Writing
from orchestrator.analysis.noise import Repeats
from orchestrator.analysis.time_left import seconds_left
from orchestrator.objectives import OBJECTIVES
from orchestrator.settings import SweepSettings
from trainables.values.config import FINAL_STATES, Precision
from trainables.values.results import TrialResult

Working = Literal[
    "starting workers and first trials", "training", "testing finalists on fresh seeds", "evaluating finalists"
]
Phase = Working | Literal["ended"] | Writing
"""The first lasts until a trial reports a loss: workers import PyTorch, load the base, and measure a cost key."""

STOPPABLE: tuple[Working, ...] = get_args(Working)
"""Phases after which `resume` goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A trial at work.

    Attributes:
        step: of its last rung, 0 before the first, as of a seed replicate until its end; and so without a loss.
        seconds_per_step: of its cost key; None before that was measured.
    """

    number: int
    precision: Precision
    rank: int
    step: int
    max_steps: int
    eval_loss_nats: float | None
    seconds_per_step: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A sweep at one moment.

    Attributes:
        counts: trials by state.
        n_done: trials in a final state.
        n_expected: trials the sweep will come to, as far as is known: baselines are added as they are needed.
        kinds: what makes up those, by its name: configs, their baselines, runs under other seeds.
        best: best value of each objective among completed trials but those under other seeds; None where none has one.
        best_trial: number of the trial that has it, of equal ones the first.
        n_reused: trials whose results were taken from other sweeps.
        front_size: members of the Pareto front.
        phase: what is done now; "training" is the search.
        starting_seconds: since when workers and first trials start; None in other phases, and where no process
            runs the sweep or no time was given.
        running: by number.
        n_evaluated, n_to_evaluate: test evaluations of finalists and their runs under other seeds: those done, and
            how many there will be as far as is known; those that failed are neither.
        seconds_left: until all is written, see orchestrator.analysis.time_left; None before a trial has ended,
            where no process runs the sweep, and where no time was given.
        share_done: of the time that the sweep takes in all; 0 where none is known.
        last_fault: reason of the last trial that broke.
    """

    counts: dict[str, int]
    n_done: int
    n_expected: int
    kinds: dict[str, int]
    best: dict[str, float | None]
    best_trial: dict[str, int | None]
    n_reused: int
    front_size: int
    phase: Phase
    starting_seconds: float | None
    running: tuple[Running, ...]
    n_evaluated: int
    n_to_evaluate: int
    seconds_left: float | None
    share_done: float
    last_fault: str | None


def status_of(
    trials: Sequence[TrialResult],
    settings: SweepSettings,
    *,
    ended: bool = False,
    finished: bool = False,
    moment: Moment | None = None,
    repeats: Repeats = (),
) -> Status:
    """Derive the status from the ledger's trials.

    Args:
        ended: the search is over, though it may not have taken up all it was allowed.
        finished: so is all that follows it.
        moment: in time; without it nothing is said of that.
        repeats: measurements of time beside those of the trials, see orchestrator.analysis.noise.
    """
    counts = Counter(map(attrgetter("state"), trials))
    n_searched = 0 if ended or finished else _n_to_come(trials, settings)
    searching = n_searched > 0 or any(t.state not in FINAL_STATES and t.is_of_search for t in trials)
    n_replicates = 0 if searching or finished else _n_replicates_to_come(trials, settings)
    phase = _phase(trials, searching, n_replicates, finished, moment)
    left, share_done = _time(trials, settings, n_searched, moment, finished=finished)
    found = _found(trials, settings, repeats)
    if moment and left is None and phase == "evaluating finalists":  # all trials were reused: none has told a pace
        share_done = found["n_evaluated"] / max(1, found["n_to_evaluate"])
    return Status(
        counts=dict(counts),
        n_done=sum(map(counts.__getitem__, FINAL_STATES)),
        n_expected=len(trials) + n_searched + n_replicates,
        kinds=_kinds(trials, n_searched, n_replicates),
        phase=phase,
        starting_seconds=_starting_seconds(phase, moment),
        running=tuple(_running(trial) for trial in trials if trial.state == "running"),
        seconds_left=left,
        share_done=share_done,
        **found,
    )


def _found(trials: Sequence[TrialResult], settings: SweepSettings, repeats: Repeats) -> dict[str, Any]:
    """What the trials came to so far; fields of Status by name."""
    best = {objective: _best(trials, objective) for objective in settings.objectives}
    evaluated = [trial.test_evaluation is not None for trial in evaluations(trials, settings)]
    return {
        "best": {objective: value for objective, (value, _) in best.items()},
        "best_trial": {objective: number for objective, (_, number) in best.items()},
        "n_reused": sum(map(is_reused, trials)),
        "front_size": len(front_of(trials, settings, repeats=repeats).members),
        "n_evaluated": sum(evaluated),
        "n_to_evaluate": len(evaluated),
        "last_fault": _last_fault(trials),
    }


def to_come(settings: SweepSettings) -> str:
    """What trials a sweep will come to, before it has begun: the counts grow with its results."""
    precision = settings.space.parameters.get("precision")
    n_points = settings.space.n_points
    n_configs = settings.n_trials if n_points is None else min(settings.n_trials, n_points)
    configs = f"{n_configs} configs"
    if n_configs < settings.n_trials:
        configs += f" (all points of the space; {settings.n_trials} were asked for)"
    if "nf4" not in (precision.samples if precision else (settings.first_config.precision,)):
        return f"{configs}, then finalists under other seeds"
    return (
        f"{configs}, the 16-bit baseline of each completed 4-bit one (at most {n_configs}), then finalists "
        f"under other seeds (of each 4-bit one's baseline {settings.baseline_seeds})"
    )


def _kinds(trials: Sequence[TrialResult], n_searched: int, n_replicates: int) -> dict[str, int]:
    """Trials by kind, those to come included; kinds of which there are none are left out."""
    by_origin = Counter(map(attrgetter("origin"), trials))
    n_baselines = by_origin["baseline"]
    kinds = {"configs": by_origin["search"] + n_searched, "baselines": n_baselines}
    kinds["seed replicates"] = by_origin["replicate"] + by_origin["baseline replicate"] + n_replicates
    return {kind: n for kind, n in kinds.items() if n}


def _n_to_come(trials: Sequence[TrialResult], settings: SweepSettings) -> int:
    """Trials the search will still take up."""
    n_left = settings.n_trials - Counter(map(attrgetter("origin"), trials))["search"]
    n_points = settings.space.n_points
    if n_points is not None and n_left > 0 and (settings.space.method == "grid" or n_points <= settings.n_trials):
        # the search ends with the space's points, and a baseline may be one of them
        known = set(map(attrgetter("config"), trials))
        n_left = min(n_left, sum(settings.config(point) not in known for point in settings.space.grid()))
    return max(0, n_left)


def _n_replicates_to_come(trials: Sequence[TrialResult], settings: SweepSettings) -> int:
    """Runs under other seeds that the finalists still need."""
    runs = set(map(attrgetter("config"), wanted(trials, settings)))
    return len(runs.difference(map(attrgetter("config"), trials)))


def _last_fault(trials: Sequence[TrialResult]) -> str | None:
    faults = [trial for trial in trials if trial.state in ("oom", "diverged", "failed", "refused")]
    return max(faults, key=lambda trial: trial.ended_at or 0).reason if faults else None


def _best(trials: Sequence[TrialResult], objective: str) -> tuple[float, int] | tuple[None, None]:
    """Best value of the candidates and the number of the first that has it."""
    candidates = filter(is_candidate, trials)
    known = [(v, trial.number) for trial in candidates if (v := objective_value(trial, objective)) is not None]
    return min(known, key=lambda pair: (pair[0] * OBJECTIVES[objective].sign, pair[1]), default=(None, None))


def _phase(
    trials: Sequence[TrialResult], searching: bool, n_replicates: int, finished: bool, moment: Moment | None
) -> Phase:
    """Finalists are evaluated among the runs under other seeds; the phase is theirs once all is trained."""
    if moment and moment.writing:
        return moment.writing[0]
    if finished:
        return "ended"
    if searching:
        return "training" if _has_reported(trials, moment) else "starting workers and first trials"
    if n_replicates or any(trial.state not in FINAL_STATES for trial in trials):
        return "testing finalists on fresh seeds"
    return "evaluating finalists"


def _has_reported(trials: Sequence[TrialResult], moment: Moment | None) -> bool:
    """Whether a trial has, since the process began that runs the sweep."""
    began = moment.began_at if moment else 0.0
    for trial in trials:
        if trial.state == "running" and trial.history:
            return True
        if trial.state in FINAL_STATES and (trial.ended_at or 0.0) >= began:
            return True
    return False


def _starting_seconds(phase: Phase, moment: Moment | None) -> float | None:
    if phase != "starting workers and first trials" or moment is None or not moment.began_at:
        return None
    return max(0.0, moment.now - moment.began_at)


def _time(
    trials: Sequence[TrialResult], settings: SweepSettings, n_searched: int, moment: Moment | None, *, finished: bool
) -> tuple[float | None, float]:
    """Seconds left, and the share done: of a sweep that was interrupted, and so is written early, none is known."""
    if finished and not (moment and moment.writing):
        return None, 1.0
    left = _seconds_left(trials, settings, n_searched, moment)
    return left, moment.share_done(left) if moment and (finished or not moment.writing) else 0.0


def _running(trial: TrialResult) -> Running:
    last = trial.history[-1] if trial.history else None
    return Running(
        number=trial.number,
        precision=trial.config.precision,
        rank=trial.config.rank,
        step=last.step if last else 0,
        max_steps=trial.config.max_steps,
        eval_loss_nats=last.eval_loss_nats if last else None,
        seconds_per_step=trial.cost.seconds_per_step if trial.cost else None,
    )


def _seconds_left(
    trials: Sequence[TrialResult], settings: SweepSettings, n_searched: int, moment: Moment | None
) -> float | None:
    """Until all is written."""
    if moment is None:
        return None
    if moment.writing:
        return moment.writing_seconds_left
    tasks = seconds_left(trials, settings, moment, n_searched)
    if tasks is None:
        return None
    if settings.max_hours is not None:
        tasks = min(tasks, max(0.0, 3600 * settings.max_hours - moment.spent_seconds))
    return tasks + moment.writing_seconds_left
