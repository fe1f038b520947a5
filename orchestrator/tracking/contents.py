"""What the runs of a sweep hold in MLflow, from its ledger alone: here what they share, and its own run.

The projection writes these values and `verify` compares MLflow with them, so that nothing is written that is not
compared. Pure; MLflow is not imported.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from orchestrator.analysis.describe import text_of
from orchestrator.analysis.front import is_candidate, is_reused
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.figures import gallery, hypervolume
from orchestrator.report import render
from orchestrator.report.values import SweepReport
from orchestrator.tracking import view
from orchestrator.tracking.artifacts import SAMPLES, TABLES
from orchestrator.tracking.store import page_of
from trainables.values.config import State
from trainables.values.results import TrialResult

Point = tuple[str, float, int, int]
"""Of a metric: name, value, time in ms and step, in the order of MLflow's Metric."""

SWEEP, PARENT = "sweep_id", "mlflow.parentRunId"
"""Tags: of the sweep's run its sweep's id, of each child its parent's run id (and the sweep's, see view.CHILD_OF)."""
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
GROWS = "n_trials"
"""The one setting of a sweep that may change, see orchestrator.driver.extend: a tag, as MLflow changes no param."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Of one run, or of one model.

    Attributes:
        status: of a run, RUNNING while something is still to come.
        ended_ms: when a run that is not RUNNING ended.
        points: of all metrics, each step of a metric once.
        others: values that the run has in a table; earlier versions wrote them as metrics, which may still be there.
        texts: artifacts by name.
    """

    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: tuple[Point, ...]
    others: tuple[Point, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    status: str = "RUNNING"
    ended_ms: int | None = None


def has_picture(files: Mapping[str, str] | None) -> bool:
    """Whether the files that were written of a sweep hold a picture of its front."""
    return gallery.FRONT_FILE in (files or {})


def params_of(values: Mapping[str, Any]) -> dict[str, str]:
    """A config, or settings, as MLflow keeps them."""
    return {name: text_of(value) for name, value in values.items()}


def points_of(values: Mapping[str, float], at_ms: int, step: int) -> Iterator[Point]:
    """Metrics at one step."""
    for name, value in values.items():
        yield name, float(value), at_ms, step


def ended_ms(trial: TrialResult) -> int:
    """When a trial ended; 0 where it did not."""
    return int((trial.ended_at or 0) * 1000)


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
    asked = settings.model_dump(mode="json", exclude={"space", "name", "address", GROWS})
    tags = {SWEEP: sweep_id, "space": settings.space.name, GROWS: str(settings.n_trials)}
    for name in ("base_model", "weights", "data", "compute_dtype"):
        tags[name] = str(getattr(snapshot.workload, name))
    for name in ("data_split", "columns", "rows_found"):
        if said := getattr(snapshot.workload, name):
            tags[name] = said
    tags[ANSWER] = report.answer.removeprefix("Answer: ")
    picture = _picture(where[1]) if has_front else ""
    tags[NOTE] = render.description(report, NOTE_CHARS, _links(*where, sweep_id), picture)
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
    return max((ended_ms(trial) for trial in snapshot.trials), default=0)


def _sums(snapshot: SweepSnapshot, *, with_hypervolume: bool) -> list[Point]:
    values: dict[str, float] = {"front_size": len(snapshot.front.members)}
    if with_hypervolume:
        values[GROWTH[0]] = snapshot.front.hypervolume
    values["n_reused"] = sum(map(is_reused, snapshot.trials))
    counts = Counter(trial.state for trial in snapshot.trials)
    for state in STATUS:
        values[f"n_{state}"] = counts[state]
    return list(points_of(values, last_end_ms(snapshot), 0))


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


def _links(experiment_id: str, run_id: str, sweep_id: str) -> str:
    """To the run's interactive figures, its report and the table of its trials, in Markdown."""
    run, _, query = page_of(experiment_id, run_id).partition("?")
    where = {}
    for what, path in {"All figures, interactive": gallery.PAGE, "The whole report": REPORT}.items():
        where[what] = f"{run}/artifacts/{quote(path)}?{query}"
    where["All trials in a table"] = view.page_of(experiment_id, sweep_id)
    return " · ".join(f"[{what}]({address})" for what, address in where.items())


def _picture(run_id: str) -> str:
    """The front's picture in Markdown, asked of the server that shows it."""
    title, _ = gallery.IN_REPORT[gallery.FRONT_OF]
    return f"![{title}](get-artifact?{urlencode({'path': gallery.FRONT_FILE, 'run_uuid': run_id})})"
