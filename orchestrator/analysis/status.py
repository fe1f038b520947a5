"""How far a sweep is, derived from the trials of its ledger."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

from orchestrator.analysis.finalists import wanted
from orchestrator.analysis.front import front_of, is_reused, objective_value
from orchestrator.analysis.noise import Repeats
from orchestrator.objectives import OBJECTIVES
from orchestrator.settings import SweepSettings
from trainables.values.config import FINAL_STATES
from trainables.values.results import TrialResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A sweep at one moment.

    Attributes:
        counts: trials by state.
        n_done: trials in a final state.
        n_expected: trials the sweep will come to, as far as is known: baselines are added as they are needed.
        kinds: what makes up those, by its name: configs, their baselines, runs under other seeds.
        best: best value of each objective among completed trials.
        n_reused: trials whose results were taken from other sweeps.
        front_size: members of the Pareto front.
        phase: "search"; then "finalists": other seeds and test evaluations of the finalists.
        seconds_left: from the measured time of trials that ended, be it early, and how many run at once; of those
            that began before any had ended nothing is taken, as each loaded the base first. None before the first
            of the others.
        last_fault: reason of the last trial that broke.
    """

    counts: dict[str, int]
    n_done: int
    n_expected: int
    kinds: dict[str, int]
    best: dict[str, float | None]
    n_reused: int
    front_size: int
    phase: Literal["search", "finalists"]
    seconds_left: float | None
    last_fault: str | None


def status_of(
    trials: Sequence[TrialResult],
    settings: SweepSettings,
    *,
    ended: bool = False,
    finished: bool = False,
    now: float | None = None,
    repeats: Repeats = (),
) -> Status:
    """Derive the status from the ledger's trials.

    Args:
        ended: the search is over, though it may not have taken up all it was allowed.
        finished: so is all that follows it.
        now: seconds since the epoch, for what running trials have behind them; without it they count as just begun.
        repeats: measurements of time beside those of the trials, see orchestrator.analysis.noise.
    """
    counts = Counter(map(attrgetter("state"), trials))
    n_searched = 0 if ended or finished else _n_to_come(trials, settings)
    searching = n_searched > 0 or any(t.state not in FINAL_STATES and t.is_of_search for t in trials)
    n_replicates = 0 if searching or finished else _n_replicates_to_come(trials, settings)
    expected = len(trials) + n_searched + n_replicates
    completed = [trial for trial in trials if trial.state == "completed"]
    faults = [trial for trial in trials if trial.state in ("oom", "diverged", "failed", "refused")]
    return Status(
        counts=dict(counts),
        n_done=sum(map(counts.__getitem__, FINAL_STATES)),
        n_expected=expected,
        kinds=_kinds(trials, n_searched, n_replicates),
        best={objective: _best(completed, objective) for objective in settings.objectives},
        n_reused=sum(map(is_reused, trials)),
        front_size=len(front_of(trials, settings, repeats=repeats).members),
        phase="search" if searching else "finalists",
        seconds_left=_seconds_left(trials, expected, now),
        last_fault=max(faults, key=lambda t: t.ended_at or 0).reason if faults else None,
    )


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


def _best(trials: Sequence[TrialResult], objective: str) -> float | None:
    known = [value for trial in trials if (value := objective_value(trial, objective)) is not None]
    return min(known, key=lambda value: value * OBJECTIVES[objective].sign, default=None)


def _seconds_left(trials: Sequence[TrialResult], n_expected: int, now: float | None) -> float | None:
    n_done, timed, begun = 0, [], []
    for trial in trials:
        if trial.state == "running" and trial.started_at is not None:
            begun.append(trial.started_at)
        if trial.state in FINAL_STATES:
            n_done += 1
            reused = trial.state == "completed" and not trial.train_seconds  # which took no time
            if trial.ended_at and trial.started_at and not reused:
                timed.append((trial.ended_at, trial.started_at))
    first_end, _ = min(timed, default=(0.0, 0.0))
    spans = [end - start for end, start in timed if start >= first_end]
    if not spans:
        return None
    mean = sum(spans) / len(spans)
    behind = sum(min(max(0.0, now - start), mean) for start in begun) if now is not None else 0.0
    return (mean * max(0, n_expected - n_done) - behind) / max(1, len(begun))
