"""What the runs and models of a sweep hold in MLflow, from its ledger alone.

The projection writes these values and `verify` compares MLflow with them, so that nothing is written that is not
compared. Pure; MLflow is not imported.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote, urlencode

from orchestrator.analysis.describe import text_of
from orchestrator.analysis.front import is_candidate, is_reused
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.analysis.verdict import Verdict, figures_of, shares_by_pairs
from orchestrator.figures import gallery, hypervolume
from orchestrator.ledger.rows import Entry
from orchestrator.report import render
from orchestrator.report.rows import COSTS
from orchestrator.report.values import SweepReport
from orchestrator.tracking.artifacts import SAMPLES, TABLES
from orchestrator.tracking.store import page_of
from trainables.values.config import State
from trainables.values.results import TrialResult

Point = tuple[str, float, int, int]
"""Of a metric: name, value, time in ms and step, in the order of MLflow's Metric."""

SWEEP, CHILD_OF, PARENT = "sweep_id", "child_of_sweep", "mlflow.parentRunId"
"""Tags: of the parent and of each child the sweep's id, and of each child its parent's run id."""
NOTE, NOTE_CHARS = "mlflow.note.content", 7900
"""Tag: a run's description. MLflow takes 8000 characters."""
ANSWER = "answer"
"""Tag of the sweep's run: the sentence that its report begins with. MLflow's page folds a description, and no tag."""
STATUS: Mapping[State, str] = {
    "completed": "FINISHED",
    "pruned": "KILLED",
    "refused": "KILLED",
    "oom": "FAILED",
    "diverged": "FAILED",
    "failed": "FAILED",
}
"""Of a run, by the state in which its trial ended."""
GROWTH = ("hypervolume", "train_device_seconds")
"""Metrics of the sweep's run after each trial that ended: the step is the number of trials that had ended."""
MODEL_TYPE = "lora-adapter"
REPORT = "report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Of one run, or of one model.

    Attributes:
        status: of a run, RUNNING while something is still to come.
        ended_ms: when a run that is not RUNNING ended.
        points: of all metrics, each step of a metric once.
    """

    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: tuple[Point, ...]
    status: str = "RUNNING"
    ended_ms: int | None = None


def has_picture(files: Mapping[str, str] | None) -> bool:
    """Whether the files that were written of a sweep hold a picture of its front."""
    return gallery.FRONT_FILE in (files or {})


# --- a trial's run and model


def of_trial(
    entry: Entry, sweep_id: str, parent_id: str, *, on_front: bool, verdict: Verdict | None, final: bool
) -> Contents:
    """A trial's run.

    Args:
        verdict: on a 4-bit trial.
        final: nothing will come any more, so that trials that wait for their similarity have ended too, and verdicts
            rest on all seeds.
    """
    trial = entry.result
    waits = trial.state == "completed" and trial.config.precision == "nf4" and trial.similarity is None
    status = "RUNNING" if waits and not final else STATUS.get(trial.state, "RUNNING")
    tags = {PARENT: parent_id, CHILD_OF: sweep_id, "trial_key": trial.key}
    tags |= {"precision": trial.config.precision, "rank": str(trial.config.rank)}
    tags |= {"state": trial.state, "origin": trial.origin} | later_tags(on_front, verdict)
    tags |= {"reason": trial.reason} if trial.reason else {}
    tags |= {"reused": "true"} if is_reused(trial) else {}
    points = [*_rungs(entry)]
    if status != "RUNNING":
        points += _end(trial)
        points += _of_verdict(trial, verdict) if verdict and final else ()
        tags |= {f"env.{name}": value for name, value in trial.environment.items()}
    return Contents(
        name=f"{trial.number:03d} {trial.config.precision} r{trial.config.rank}",
        params=params_of(trial.config.to_dict()),
        tags=tags,
        points=tuple(points),
        status=status,
        ended_ms=_ended_ms(trial) if status != "RUNNING" else None,
    )


def later_tags(on_front: bool, verdict: Verdict | None) -> dict[str, str]:
    """The tags that can change after a trial's end."""
    tags = {"on_pareto_front": str(on_front).lower()}
    if verdict:
        tags["verdict"] = verdict.sentence
        tags |= {"behaviour": verdict.behaviour} if verdict.behaviour else {}
    return tags


def params_of(values: Mapping[str, Any]) -> dict[str, str]:
    """A config, or settings, as MLflow keeps them."""
    return {name: text_of(value) for name, value in values.items()}


def _rungs(entry: Entry) -> Iterator[Point]:
    cost = entry.result.cost
    costs = {name: getattr(cost, name) for name in COSTS} if cost else {}
    for measurement, at in zip(entry.result.history, entry.measured_at, strict=True):
        values = asdict(measurement) | costs | {"rank": entry.result.config.rank}
        step = values.pop("step")
        yield from _points(values, int(at * 1000), step)


def _end(trial: TrialResult) -> Iterator[Point]:
    values = figures_of(trial)
    if trial.train_seconds is not None:
        values["train_seconds"] = trial.train_seconds
    yield from _points(values, _ended_ms(trial), trial.config.max_steps)


def _of_verdict(trial: TrialResult, verdict: Verdict) -> Iterator[Point]:
    """The share that 4 bits lose, and 1 for kept, 0 for undecided, -1 for lost; the step is the number of seeds.

    Seeds that are added later add points and change none.
    """
    for n_pairs, values in shares_by_pairs(verdict):
        yield from _points(values, _ended_ms(trial), n_pairs)


def _points(values: Mapping[str, float], at_ms: int, step: int) -> Iterator[Point]:
    for name, value in values.items():
        yield name, float(value), at_ms, step


def _ended_ms(trial: TrialResult) -> int:
    return int((trial.ended_at or 0) * 1000)


def of_model(entry: Entry, sweep_id: str) -> Contents:
    """The model of a front's member: its last measurement, its similarity and its test_evaluation.

    The points are those of the trial's run: there they are no second ones.
    """
    trial, config = entry.result, entry.result.config
    last, points = trial.history[-1].step if trial.history else None, []
    for point in _rungs(entry):
        name, _, _, step = point
        if step == last and name != "rank":
            points.append(point)
    points += [point for point in _end(trial) if point[0] != "train_seconds"]
    return Contents(
        name=f"{trial.number:03d}-{config.precision}-r{config.rank}",
        params=params_of(config.to_dict()),
        tags={SWEEP: sweep_id, "trial_key": trial.key},
        points=tuple(points),
    )


# --- the sweep's own run


def of_sweep(
    snapshot: SweepSnapshot,
    report: SweepReport,
    sweep_id: str,
    where: tuple[str, str],
    *,
    has_front: bool,
    final: bool,
) -> Contents:
    """The sweep's own run.

    Args:
        where: ids of the experiment and of the run, for links.
        has_front: the run has a picture of the front.
        final: nothing will come any more.
    """
    settings = snapshot.settings
    asked = settings.model_dump(mode="json", exclude={"space", "name", "address"})
    tags = {SWEEP: sweep_id, "space": settings.space.name}
    for name in ("base_model", "weights", "data", "compute_dtype"):
        tags[name] = str(getattr(snapshot.workload, name))
    for name in ("data_split", "columns", "rows_found"):
        if said := getattr(snapshot.workload, name):
            tags[name] = said
    tags[ANSWER] = report.answer.removeprefix("Answer: ")
    picture = _picture(where[1]) if has_front else ""
    tags[NOTE] = render.description(report, NOTE_CHARS, _links(*where), picture)
    points = growth(snapshot, final=final)
    if final:
        tags |= {TABLES: json.dumps([{"path": SAMPLES, "type": "table"}])} if report.samples else {}
        points += _sums(snapshot, with_hypervolume=GROWTH[0] not in [name for name, *_ in points])
    return Contents(
        name=settings.name,
        params=params_of(asked),
        tags=tags,
        points=tuple(points),
        status="FINISHED" if final else "RUNNING",
        ended_ms=last_end_ms(snapshot) if final else None,
    )


def last_end_ms(snapshot: SweepSnapshot) -> int:
    """Of the sweep: when its last trial ended."""
    return max((_ended_ms(trial) for trial in snapshot.trials), default=0)


def _sums(snapshot: SweepSnapshot, *, with_hypervolume: bool) -> list[Point]:
    values: dict[str, float] = {"front_size": len(snapshot.front.members)}
    if with_hypervolume:
        values[GROWTH[0]] = snapshot.front.hypervolume
    values["n_reused"] = sum(map(is_reused, snapshot.trials))
    counts = Counter(trial.state for trial in snapshot.trials)
    for state in STATUS:
        values[f"n_{state}"] = counts[state]
    return list(_points(values, last_end_ms(snapshot), 0))


def growth(snapshot: SweepSnapshot, *, final: bool) -> list[Point]:
    """What the search had spent and found by when.

    Pure in what the ledger holds, so that writing it again changes nothing. Hypervolumes that can still change are left
    out: all before the reference point is fixed, and those since a 4-bit trial completed that waits for its similarity.

    Args:
        final: none will come any more.
    """
    ended = sorted(((t.ended_at, t) for t in snapshot.trials if t.ended_at), key=lambda pair: pair[0])
    until = float("inf")
    for at, trial in reversed(ended if not final else []):
        if is_candidate(trial) and trial.config.precision == "nf4" and trial.similarity is None:
            until = at
    volumes = {moment.at: moment.volume for moment in hypervolume.curve(snapshot)}  # of one time the last
    points, seconds = [], 0.0
    for step, (at, trial) in enumerate(ended, start=1):
        seconds += (trial.train_seconds or 0.0) * hypervolume.devices_per_trial(snapshot)
        points.append((GROWTH[1], seconds, int(at * 1000), step))
        if snapshot.reference is not None and at < until and at in volumes:
            points.append((GROWTH[0], volumes[at], int(at * 1000), step))
    return points


def _links(experiment_id: str, run_id: str) -> str:
    """To the run's interactive figures and to its report, in Markdown."""
    where = {"All figures, interactive": gallery.PAGE, "The whole report": REPORT}
    run, _, query = page_of(experiment_id, run_id).partition("?")
    return " · ".join(f"[{what}]({run}/artifacts/{quote(path)}?{query})" for what, path in where.items())


def _picture(run_id: str) -> str:
    """The front's picture in Markdown, asked of the server that shows it."""
    title, _ = gallery.IN_REPORT[gallery.FRONT_OF]
    return f"![{title}](get-artifact?{urlencode({'path': gallery.FRONT_FILE, 'run_uuid': run_id})})"
