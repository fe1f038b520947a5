"""How far a sweep is, derived from the trials of its ledger."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.analysis.finalists import wanted
from orchestrator.analysis.front import front_of, objective_value
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
        best: best value of each objective among completed trials.
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
    best: dict[str, float | None]
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
) -> Status:
    """Derive the status from the ledger's trials.

    Args:
        ended: the search is over, though it may not have taken up all it was allowed.
        finished: so is all that follows it.
        now: seconds since the epoch, for what running trials have behind them; without it they count as just begun.
    """
    counts = Counter(trial.state for trial in trials)
    done = [t for t in trials if t.state in FINAL_STATES]
    n_searched = 0 if ended or finished else _n_to_come(trials, settings)
    searching = n_searched > 0 or any(t.state not in FINAL_STATES and t.is_of_search for t in trials)
    expected = len(trials) + n_searched + (0 if searching or finished else _n_replicates_to_come(trials, settings))
    completed = [t for t in trials if t.state == "completed"]
    faults = [t for t in done if t.state in ("oom", "diverged", "failed", "refused")]
    return Status(
        counts=dict(counts),
        n_done=len(done),
        n_expected=expected,
        best={objective: _best(completed, objective) for objective in settings.objectives},
        front_size=len(front_of(trials, settings).members),
        phase="search" if searching else "finalists",
        seconds_left=_seconds_left(trials, expected, now),
        last_fault=max(faults, key=lambda t: t.ended_at or 0).reason if faults else None,
    )


def _n_to_come(trials: Sequence[TrialResult], settings: SweepSettings) -> int:
    """Trials the search will still take up."""
    n_left = settings.n_trials - sum(trial.origin == "search" for trial in trials)
    if settings.space.method == "grid":  # a baseline may be a point of the grid
        known = {trial.config for trial in trials}
        n_left = min(n_left, sum(settings.config(point) not in known for point in settings.space.grid()))
    return max(0, n_left)


def _n_replicates_to_come(trials: Sequence[TrialResult], settings: SweepSettings) -> int:
    """Runs under other seeds that the finalists still need."""
    known = {trial.config for trial in trials}
    return sum(run.config not in known for run in wanted(trials, settings))


def _best(trials: Sequence[TrialResult], objective: str) -> float | None:
    values = [v for t in trials if (v := objective_value(t, objective)) is not None]
    if not values:
        return None
    return min(values, key=lambda value: value * OBJECTIVES[objective].sign)


def _seconds_left(trials: Sequence[TrialResult], n_expected: int, now: float | None) -> float | None:
    done = [t for t in trials if t.state in FINAL_STATES]
    own = [t for t in done if t.state != "completed" or t.train_seconds]  # a reused trial took no time
    timed = [(t.started_at, t.ended_at) for t in own if t.ended_at and t.started_at]
    first_end = min((end for _, end in timed), default=0.0)
    spans = [end - start for start, end in timed if start >= first_end]
    if not spans:
        return None
    mean = sum(spans) / len(spans)
    begun = [t.started_at for t in trials if t.state == "running" and t.started_at]
    behind = sum(min(max(0.0, now - start), mean) for start in begun) if now is not None else 0.0
    return (mean * max(0, n_expected - len(done)) - behind) / max(1, len(begun))
