"""A sweep's report made from its ledger alone."""

import re
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, get_args

from orchestrator.analysis.answer import answer_of, short_answer_of
from orchestrator.analysis.budgets import SPENT, Spent
from orchestrator.analysis.choice import best, counting, how_sure, knee, loss_noise, stairs
from orchestrator.analysis.costs import Predict, cost_table, savings
from orchestrator.analysis.finalists import finalists, runs_of
from orchestrator.analysis.front import Front
from orchestrator.analysis.host_memory import largest_mib, without_peak
from orchestrator.analysis.infeasible import nothing_counts
from orchestrator.analysis.noise import Noise
from orchestrator.analysis.repeats import figure, rows_of, smallest_sufficient_rank
from orchestrator.analysis.snapshot import GENERIC, SweepSnapshot
from orchestrator.analysis.verdict import compared_on, comparison_of, failed_evaluations
from orchestrator.driver.same_command import SAME_COMMAND
from orchestrator.objectives import DEFAULT
from orchestrator.report.values import Breakdown, Finalist, Measured, Outcome, SweepReport, WithinMemory
from orchestrator.settings.stored import is_recorded
from trainables.values.config import PROTOCOL_VERSION, Precision, State
from trainables.values.results import TrialResult

FIGURE = re.compile(r"\d[\d.]*")


def report_of(snapshot: SweepSnapshot, predict: Predict | None = None) -> SweepReport:
    """Make the report.

    Args:
        predict: peak memory of what was not measured; by default from the shapes of the sweep's base.
    """
    settings, trials, front, status = snapshot.settings, snapshot.trials, snapshot.front, snapshot.status()
    predict = predict or snapshot.predicted_peak_mib
    counted, noise = counting(trials, settings), loss_noise(trials)
    answer = best(counted, noise)
    chosen = finalists(trials, settings, [*front.members, *([answer] if answer else [])])
    best_4bit = _best_4bit(chosen)
    return SweepReport(
        n_done=status.n_done,
        n_expected=status.n_expected,
        n_running=status.counts.get("running", 0),
        states=status.counts,
        savings=savings(trials),
        best_loss=_number(answer),
        best_memory=_number(_least(front)),
        best_4bit=_number(best_4bit),
        sufficient_ranks={p: smallest_sufficient_rank(p, chosen, trials, settings) for p in get_args(Precision)},
        finalists=tuple(_finalist(trial, snapshot) for trial in chosen),
        costs=cost_table(trials, answer.config if answer else None, predict),
        breakdown=_breakdown(best_4bit),
        outcomes=_outcomes(trials),
        faults=failed_evaluations(trials, settings),
        measured=_measured(snapshot),
        samples=best_4bit.test_evaluation.samples if best_4bit and best_4bit.test_evaluation else (),
        within_memory=tuple(_within_memory(step, snapshot, noise) for step in stairs(counted, noise.margin)),
        sure=how_sure(answer, counted, noise, snapshot.lost) if answer else None,
        answer=answer_of(snapshot),
        short_answer=short_answer_of(snapshot),
        knee=_number(knee(front)),
        nearly={trial.number: front.shares[trial.key] for trial in front.nearly},
        nothing_counts=nothing_counts(trials, settings, predict),
        **_of_whole(snapshot),
    )


def _of_whole(snapshot: SweepSnapshot) -> dict[str, Any]:
    """What the ledger says of the sweep as a whole, whatever its trials came to; fields of SweepReport by name."""
    facts, ended = snapshot.facts, snapshot.ended
    return {
        "name": snapshot.settings.name,
        "settings": snapshot.settings,
        "workload": snapshot.workload,
        "search_ended": ended.text if ended else None,
        "spent": Spent(**facts[SPENT]) if facts.get(SPENT) else None,
        "coverage": snapshot.coverage,
        "same_command": facts.get(SAME_COMMAND),
        "generic_base": facts.get(GENERIC),
        "is_recorded": is_recorded(snapshot.folder),
    }


def _number(trial: TrialResult | None) -> int | None:
    return trial.number if trial else None


def _least(front: Front) -> TrialResult | None:
    """The member with the lowest peak."""
    measured = [member for member in front.members if member.history]
    return min(measured, key=lambda t: (t.cost.peak_memory_mib, t.number), default=None)


def _best_4bit(chosen: Sequence[TrialResult]) -> TrialResult | None:
    """The compared 4-bit finalist with the lowest loss on the validation rows, of those evaluated if any were."""
    compared = [trial for trial in chosen if trial.config.precision == "nf4" and trial.history and comparison_of(trial)]
    return min(
        compared, key=lambda t: (t.test_evaluation is None, t.history[-1].eval_loss_nats, t.number), default=None
    )


def _finalist(trial: TrialResult, snapshot: SweepSnapshot) -> Finalist:
    runs, figures, front = runs_of(trial, snapshot.trials, snapshot.settings), {}, snapshot.front
    for objective in (*DEFAULT, *snapshot.settings.objectives):
        value = figure(runs, objective)
        if value:
            figures[objective] = value
    return Finalist(
        number=trial.number,
        key=trial.key,
        config=trial.config,
        on_front=trial.key in front.keys,
        front_share=front.shares.get(trial.key),
        tied_with=tuple(map(attrgetter("number"), front.tied.get(trial.key, ()))),
        rows=rows_of(runs),
        figures=figures,
        verdict=snapshot.verdicts.get(trial.key),
        comparison=comparison_of(trial) if trial.config.precision == "nf4" else None,
        compared_on=compared_on(trial),
    )


def _within_memory(step: Sequence[TrialResult], snapshot: SweepSnapshot, noise: Noise) -> WithinMemory:
    """A step of `stairs`."""
    trial, *alike = step
    verdict = snapshot.verdicts.get(trial.key)
    return WithinMemory(
        number=trial.number,
        config=trial.config,
        peak_memory_mib=trial.cost.peak_memory_mib,
        seconds_per_step=trial.cost.seconds_per_step,
        eval_loss_nats=trial.history[-1].eval_loss_nats,
        reach_nats=noise.one_run if noise.sd is not None else None,
        alike=tuple(_within_memory([other], snapshot, noise) for other in alike),
        is_lost=verdict is not None and verdict.is_lost,
    )


def _breakdown(best: TrialResult | None) -> Breakdown | None:
    found = best.test_evaluation if best else None
    return Breakdown(shares=found.breakdown, bias=found.bias) if found and (found.breakdown or found.bias) else None


def _outcomes(trials: Sequence[TrialResult]) -> tuple[Outcome, ...]:
    """Trials with a reason, alike where state and reason are but for figures; the most frequent first."""
    groups: dict[tuple[State, str], list[TrialResult]] = {}
    for trial in trials:
        if trial.reason:
            groups.setdefault((trial.state, FIGURE.sub("N", trial.reason)), []).append(trial)
    found = []
    for (state, _), alike in groups.items():
        found.append(Outcome(state=state, n_trials=len(alike), reason=alike[0].reason or ""))
    return tuple(sorted(found, key=lambda outcome: (get_args(State).index(outcome.state), -outcome.n_trials)))


def _measured(snapshot: SweepSnapshot) -> Measured:
    trials, front = snapshot.trials, snapshot.front
    environment: dict[str, tuple[str, ...]] = {}
    ends = []
    for trial in trials:
        if trial.ended_at:
            ends.append(trial.ended_at)
        for name, value in without_peak(trial.environment).items():
            environment[name] = tuple(dict.fromkeys((*environment.get(name, ()), value)))
    began = snapshot.facts.get("created_at")
    versions = snapshot.protocols or {PROTOCOL_VERSION}
    return Measured(
        protocol_version=next(iter(versions)) if len(versions) == 1 else None,
        data_counts=snapshot.facts.get("data_counts") or {},
        environment=environment,
        peak_resident_mib=largest_mib(trials),
        noise=front.noise,
        wall_seconds=max(ends) - began if began and ends else None,
        train_seconds=sum(trial.train_seconds or 0.0 for trial in trials),
    )
