"""A sweep's report made from its ledger alone."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from orchestrator.analysis.budgets import SPENT, Spent
from orchestrator.analysis.choice import best, counting, knee, stairs
from orchestrator.analysis.costs import Predict, cost_table, savings
from orchestrator.analysis.finalists import finalists, runs_of
from orchestrator.analysis.front import Front
from orchestrator.analysis.infeasible import nothing_counts
from orchestrator.analysis.repeats import figure, rows_of, smallest_sufficient_rank
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.analysis.verdict import comparison_of, failed_evaluations, verdict_of
from orchestrator.objectives import DEFAULT
from orchestrator.report.values import Breakdown, Finalist, Measured, Outcome, Report, WithinMemory
from orchestrator.settings import SweepSettings
from orchestrator.settings.command import command
from trainables.values.config import PROTOCOL_VERSION, Precision, State
from trainables.values.errors import ConfigError
from trainables.values.results import TrialResult

FIGURE = re.compile(r"\d[\d.]*")


def newest(root: Path) -> str:
    """Name of the sweep whose settings were written last.

    Raises:
        ConfigError: there is none.
    """
    found = sorted((root / "sweeps").glob("*/settings.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(f"there is no sweep under {root / 'sweeps'} yet; run one first: {command()} run")
    return found[-1].parent.name


def report_of(snapshot: SweepSnapshot, predict: Predict | None = None) -> Report:
    """Make the report.

    Args:
        predict: peak memory of what was not measured; by default from the shapes of the sweep's base.
    """
    settings, trials, facts, front = snapshot.settings, snapshot.trials, snapshot.facts, snapshot.front
    predict = predict or snapshot.predicted_peak_mib
    ended, status = snapshot.ended, snapshot.status()
    middle = knee(front)
    chosen = finalists(trials, settings, front)
    members = [member for member in front.members if member.history]
    lowest = best(counting(trials, settings))
    least = min(members, key=lambda t: (t.cost.peak_memory_mib, t.number), default=None)
    compared = [trial for trial in chosen if trial.config.precision == "nf4" and trial.history and comparison_of(trial)]
    best_4bit = min(compared, key=lambda t: (t.test_evaluation is None, *_loss(t)), default=None)
    return Report(
        name=settings.name,
        settings=settings,
        workload=snapshot.workload,
        n_done=status.n_done,
        n_expected=status.n_expected,
        n_running=status.counts.get("running", 0),
        states=status.counts,
        savings=savings(trials),
        best_loss=lowest.number if lowest else None,
        best_memory=least.number if least else None,
        best_4bit=best_4bit.number if best_4bit else None,
        sufficient_ranks={p: smallest_sufficient_rank(p, chosen, trials, settings) for p in get_args(Precision)},
        finalists=tuple(_finalist(trial, trials, front, settings) for trial in chosen),
        costs=cost_table(trials, lowest.config if lowest else None, predict),
        breakdown=_breakdown(best_4bit),
        outcomes=_outcomes(trials),
        faults=failed_evaluations(trials, settings),
        measured=_measured(snapshot),
        within_memory=_within_memory(trials, settings),
        knee=middle.number if middle else None,
        search_ended=ended.text if ended else None,
        nothing_counts=nothing_counts(trials, settings, predict),
        spent=Spent(**facts[SPENT]) if facts.get(SPENT) else None,
    )


def _finalist(trial: TrialResult, trials: Sequence[TrialResult], front: Front, settings: SweepSettings) -> Finalist:
    runs = runs_of(trial, trials, settings)
    objectives = dict.fromkeys((*DEFAULT, *settings.objectives))
    found = {objective: figure(runs, objective) for objective in objectives}
    return Finalist(
        number=trial.number,
        key=trial.key,
        config=trial.config,
        on_front=trial.key in front.keys,
        rows=rows_of(runs),
        figures={objective: value for objective, value in found.items() if value},
        verdict=verdict_of(trial, settings.min_similarity),
        comparison=comparison_of(trial) if trial.config.precision == "nf4" else None,
    )


def _within_memory(trials: Sequence[TrialResult], settings: SweepSettings) -> tuple[WithinMemory, ...]:
    """From the smallest budget up; empty where no trial counts for the front."""
    return tuple(
        WithinMemory(
            number=trial.number,
            config=trial.config,
            peak_memory_mib=trial.cost.peak_memory_mib,
            seconds_per_step=trial.cost.seconds_per_step,
            eval_loss_nats=trial.history[-1].eval_loss_nats,
        )
        for trial in stairs(counting(trials, settings))
    )


def _loss(trial: TrialResult) -> tuple[float, int]:
    """On the validation rows; of equal ones the earlier trial's goes first."""
    return trial.history[-1].eval_loss_nats, trial.number


def _breakdown(best: TrialResult | None) -> Breakdown | None:
    found = best.test_evaluation if best else None
    return Breakdown(shares=found.breakdown, bias=found.bias) if found and (found.breakdown or found.bias) else None


def _outcomes(trials: Sequence[TrialResult]) -> tuple[Outcome, ...]:
    """Trials with a reason, alike where state and reason are but for figures; the most frequent first."""
    groups: dict[tuple[State, str], list[TrialResult]] = {}
    for trial in trials:
        if trial.reason:
            groups.setdefault((trial.state, FIGURE.sub("N", trial.reason)), []).append(trial)
    found = [Outcome(state=g[0].state, n_trials=len(g), reason=g[0].reason or "") for g in groups.values()]
    return tuple(sorted(found, key=lambda outcome: (get_args(State).index(outcome.state), -outcome.n_trials)))


def _measured(snapshot: SweepSnapshot) -> Measured:
    trials, front, workload = snapshot.trials, snapshot.front, snapshot.workload
    values: dict[str, dict[str, None]] = {}
    for trial in trials:
        for name, value in trial.environment.items():
            values.setdefault(name, {})[value] = None
    began, ends = snapshot.facts.get("created_at"), [trial.ended_at for trial in trials if trial.ended_at]
    ours = workload is None or all(workload.key(trial.config) == trial.key for trial in trials)
    return Measured(
        protocol_version=PROTOCOL_VERSION if ours else None,
        data_counts=snapshot.facts.get("data_counts") or {},
        environment={name: tuple(found) for name, found in values.items()},
        epsilon=dict(zip(front.objectives, front.epsilon, strict=True)),
        wall_seconds=max(ends) - began if began and ends else None,
        train_seconds=sum(trial.train_seconds or 0.0 for trial in trials),
    )
