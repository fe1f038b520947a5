"""What the run and the model of a trial hold in MLflow, from the sweep's ledger alone. Pure, as contents.py."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.describe import describe
from orchestrator.analysis.front import is_reused, objective_value
from orchestrator.analysis.place import Place, places
from orchestrator.analysis.verdict import Verdict, comparison_of, figures_of, shares_by_pairs, short
from orchestrator.objectives import OBJECTIVES
from orchestrator.report.markdown import safe
from orchestrator.report.rows import COSTS
from orchestrator.settings.command import SCRIPT
from orchestrator.tracking.artifacts import TABLES, table
from orchestrator.tracking.contents import (
    NOTE,
    PARENT,
    STATUS,
    SWEEP,
    Contents,
    Point,
    ended_ms,
    params_of,
    points_of,
)
from orchestrator.tracking.view import CHILD_OF

if TYPE_CHECKING:
    from orchestrator.analysis.snapshot import SweepSnapshot
    from orchestrator.ledger.rows import Entry
    from trainables.values.results import TrialResult

CURVE = "train_loss_curve_nats"
"""Metric: mean training loss of the steps since the last point, see trainables.values.results.curve_of."""
LOST = ("lost_share", "lost_share_low", "lost_share_high")
TEST = "test_"
"""Begins the names of figures on the test rows."""
METRICS = frozenset({*OBJECTIVES, "kl_nats", "train_loss_nats", CURVE, "rank", *LOST})
"""What a trial's page draws and the table of trials can be sorted by, on the test rows too."""
FIGURES = "final_values.json"
"""An artifact table of a trial's run: all of its final values."""
PARTS = re.compile(r"(test_)?(?:(untuned|replicate)_)?(.+?)(?:_(least_seed|largest_seed))?(?:_(low|high))?")
"""Of a figure's name: whether it is on the test rows, what it is of if not the trial, and which end of an interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a trial is in its sweep, which later trials may change.

    Attributes:
        sweep: the sweep's name.
        on_front: whether it is a member of the front.
        verdict: on a 4-bit trial.
        place: among the runs of its config under several seeds.
    """

    sweep: str
    on_front: bool
    verdict: Verdict | None
    place: Place


def standings(snapshot: "SweepSnapshot") -> dict[str, Standing]:
    """Of every trial, by key."""
    found, keys, of_config = {}, snapshot.front.keys, places(snapshot.trials)
    for trial in snapshot.trials:
        found[trial.key] = Standing(
            sweep=snapshot.settings.name,
            on_front=trial.key in keys,
            verdict=snapshot.verdicts.get(trial.key),
            place=of_config[trial.key],
        )
    return found


def of_trial(entry: "Entry", sweep_id: str, parent_id: str, standing: Standing, *, final: bool) -> Contents:
    """A trial's run.

    Args:
        final: nothing will come any more, so that trials that wait for their similarity have ended too, and verdicts
            rest on all seeds.
    """
    trial = entry.result
    waits = trial.state == "completed" and trial.config.precision == "nf4" and trial.similarity is None
    status = "RUNNING" if waits and not final else STATUS.get(trial.state, "RUNNING")
    tags = {PARENT: parent_id, CHILD_OF: sweep_id, "trial_key": trial.key}
    tags |= {"precision": trial.config.precision, "rank": str(trial.config.rank)}
    tags |= {"state": trial.state, "origin": trial.origin} | later_tags(trial, standing)
    tags |= {"reason": trial.reason} if trial.reason else {}
    tags |= {"reused": "true"} if is_reused(trial) else {}
    points = [*_rungs(entry)]
    if status != "RUNNING":
        points += _end(trial)
        points += _of_verdict(trial, standing.verdict) if standing.verdict and final else ()
        tags |= {f"env.{name}": value for name, value in trial.environment.items()}
    drawn, others = _parted(points)
    texts = {FIGURES: _table(points)} if points and status != "RUNNING" else {}
    tags |= {TABLES: json.dumps([{"path": FIGURES, "type": "table"}])} if texts else {}
    return Contents(
        name=name_of(trial, standing.place),
        params=params_of(trial.config.to_dict()),
        tags=tags,
        points=drawn,
        others=others,
        texts=texts,
        status=status,
        ended_ms=ended_ms(trial) if status != "RUNNING" else None,
    )


def name_of(trial: "TrialResult", place: Place) -> str:
    """Number and what it is: "17 nf4 r8", "18 16bit r8 baseline", "42 seed 2 of 10", "43 baseline seed 2 of 3"."""
    what = [] if place.nth > 1 else [trial.config.precision, f"r{trial.config.rank}"]
    what += ["baseline"] if trial.origin.startswith("baseline") else []
    what += [f"seed {place.nth} of {place.n}"] if place.nth > 1 else []
    return " ".join([str(trial.number), *what])


def later_tags(trial: "TrialResult", standing: Standing) -> dict[str, str]:
    """The tags that can change after a trial's end."""
    verdict = standing.verdict
    tags = {"on_pareto_front": str(standing.on_front).lower(), NOTE: note_of(trial, standing)}
    if verdict:
        tags["verdict"] = verdict.sentence
        tags |= {"behaviour": verdict.behaviour} if verdict.behaviour else {}
    return tags


def note_of(trial: "TrialResult", standing: Standing) -> str:
    """A trial in three lines of Markdown: its config, what it came to, and how to get it."""
    place = standing.place
    config = safe(describe(trial.config)) + f", seed {trial.config.seed}, {trial.config.max_steps} steps"
    config += f" (trial {place.first} under another seed)" if place.nth > 1 else ""
    how = "no adapter: it did not train to its end; all its settings are the parameters of this run"
    if trial.state == "completed":
        how = f"`{SCRIPT} export {standing.sweep} DEST --trial {trial.number}`: adapter, card and code that loads it"
    return "  \n".join([f"**{name_of(trial, place)}**: {config}", safe(_result(trial, standing)), how])


def _result(trial: "TrialResult", standing: Standing) -> str:
    said = [trial.state + (f" at step {trial.history[-1].step}" if trial.history and not trial.is_whole else "")]
    said += [trial.reason] if trial.reason else []
    for name, objective in OBJECTIVES.items():
        value = objective_value(trial, name)
        if value is not None and (objective.source != "similarity" or trial.config.precision == "nf4"):
            said.append(f"{objective.heading} {objective.shown(value)}")
    compared = comparison_of(trial) if trial.config.precision == "nf4" else None
    said += [f"KL {compared.quantized.kl_nats.value:.4f} nats"] if compared else []
    said += ["on the front"] if standing.on_front else []
    said += [short(standing.verdict)] if standing.verdict else []
    return "; ".join(said)


def of_model(entry: "Entry", sweep_id: str) -> Contents:
    """The model of a front's member: its last measurement, its similarity and its test evaluation.

    The points are those of the trial's run: there they are no second ones.
    """
    trial, config = entry.result, entry.result.config
    last, points = trial.history[-1].step if trial.history else None, []
    for point in _rungs(entry):
        name, _, _, step = point
        if step == last and name not in ("rank", CURVE):
            points.append(point)
    points += [point for point in _end(trial) if point[0] != "train_seconds"]
    drawn, others = _parted(points)
    return Contents(
        name=f"{trial.number:03d}-{config.precision}-r{config.rank}",
        params=params_of(config.to_dict()),
        tags={SWEEP: sweep_id, "trial_key": trial.key},
        points=drawn,
        others=others,
    )


def _parted(points: list[Point]) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
    """Those of METRICS, and the others."""
    drawn, others = [], []
    for point in points:
        (drawn if point[0].removeprefix(TEST) in METRICS else others).append(point)
    return tuple(drawn), tuple(others)


def _table(points: list[Point]) -> str:
    """The last value of each figure, its interval beside it; "of" is empty for the trial itself on validation rows."""
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for name, value, *_ in points:
        on_test, of, figure, seed, end = PARTS.fullmatch(name).groups(default="")  # type: ignore[union-attr]
        if name != CURVE:
            whose = ", ".join(filter(None, (of or seed, "test rows" if on_test else "")))
            rows.setdefault((figure, whose), {})[end or "value"] = value
    columns = ("value", "low", "high")
    return table(["figure", "of", *columns], _cells(rows, columns))


def _cells(rows: Mapping[tuple[str, str], Mapping[str, float]], columns: Sequence[str]) -> Iterator[list[Any]]:
    for key, row in rows.items():
        yield [*key, *(row.get(column, "") for column in columns)]  # of null MLflow's page makes a word


def _rungs(entry: "Entry") -> Iterator[Point]:
    cost = entry.result.cost
    costs = {name: getattr(cost, name) for name in COSTS} if cost else {}
    for measurement, at in zip(entry.result.history, entry.measured_at, strict=True):
        at_ms = int(at * 1000)
        losses = {"train_loss_nats": measurement.train_loss_nats, "eval_loss_nats": measurement.eval_loss_nats}
        yield from points_of(losses | costs | {"rank": entry.result.config.rank}, at_ms, measurement.step)
        for step, loss in measurement.train_curve:
            yield CURVE, loss, at_ms, step


def _end(trial: "TrialResult") -> Iterator[Point]:
    values = figures_of(trial)
    if trial.train_seconds is not None:
        values["train_seconds"] = trial.train_seconds
    yield from points_of(values, ended_ms(trial), trial.config.max_steps)


def _of_verdict(trial: "TrialResult", verdict: Verdict) -> Iterator[Point]:
    """The share that 4 bits lose, and 1 for kept, 0 for undecided, -1 for lost; the step is the number of seeds.

    Seeds that are added later add points and change none.
    """
    for n_pairs, values in shares_by_pairs(verdict):
        yield from points_of(values, ended_ms(trial), n_pairs)
