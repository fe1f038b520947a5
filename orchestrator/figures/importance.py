"""Which searched setting moves which objective: functional ANOVA over the completed trials."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure as PngFigure

from orchestrator.analysis.front import is_candidate, losses_of
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.figures.points import point_of
from orchestrator.figures.style import LeftOut, Picture, canvas, legend
from orchestrator.objectives import OBJECTIVES

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna.trial import FrozenTrial


NAME, TITLE = "importance", "Which setting moves which objective"
MIN_TRIALS = 10
"""A forest fitted to fewer says more about its seed than about the settings."""
Shares = Mapping[str, Mapping[str, float]]
KnownPoint = tuple[dict[str, Any], tuple[float, ...]]


def draw(snapshot: SweepSnapshot) -> Picture | LeftOut:
    """A bar for each setting and objective; objectives that do not differ have none."""
    objectives = snapshot.settings.objectives
    points = known_points(snapshot)
    if len(points) < MIN_TRIALS:
        reason = f"{len(points)} completed trials with all objectives, at least {MIN_TRIALS} are needed"
        return LeftOut(name=NAME, reason=reason)
    params, losses = zip(*points, strict=True)
    varied = _differing(params, params[0])
    differing = _differing(losses, range(len(objectives)))
    if len(varied) < 2 or not differing:
        reason = f"{len(varied)} settings and {len(differing)} objectives differ between trials, 2 and 1 are needed"
        return LeftOut(name=NAME, reason=reason)
    found = importance(snapshot, points, varied, differing)
    notes = [
        f"Functional ANOVA (Hutter et al. 2014): Optuna's FanovaImportanceEvaluator, seed {snapshot.settings.seed}, "
        f"over {len(points)} completed trials, without pruned ones. "
        "Shares of each objective's main effects add up to 1.",
    ]
    same = [OBJECTIVES[o].label for i, o in enumerate(objectives) if i not in differing]
    if same:
        notes.append(f"The same for all trials: {', '.join(same)}.")
    return Picture(name=NAME, title=TITLE, notes=tuple(notes), png=partial(_png, found), html=partial(_html, found))


def _differing(rows: Sequence[Any], columns: Iterable[Any]) -> list[Any]:
    """Those columns, by name or index, in which not all rows are the same."""
    return [column for column in columns if len(set(map(itemgetter(column), rows))) > 1]


def known_points(snapshot: SweepSnapshot) -> list[KnownPoint]:
    """Points of the space whose trials completed as candidates, with their losses."""
    found: list[KnownPoint] = []
    for trial in snapshot.trials:
        losses = losses_of(trial, snapshot.settings.objectives) if is_candidate(trial) else None
        params = point_of(trial.config, snapshot.settings.space)
        if losses is not None and params is not None:
            found.append((params, losses))
    return found


def importance(
    snapshot: SweepSnapshot, points: Sequence[KnownPoint], varied: Sequence[str], objectives: Sequence[int]
) -> Shares:
    """Share of each varied setting in each objective (by its index).

    A study of its own is made for it, which holds nothing but these settings and losses.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parameters = snapshot.settings.space.parameters
    distributions = {name: parameters[name].in_optuna() for name in varied}
    study = optuna.create_study(directions=["minimize"] * len(snapshot.settings.objectives))
    for params, losses in points:
        inside = {name: params[name] for name in varied}
        study.add_trial(optuna.trial.create_trial(params=inside, distributions=distributions, values=losses))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=snapshot.settings.seed)
    shares = {}
    for i in objectives:
        target = partial(_nth, i)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)
        shares[snapshot.settings.objectives[i]] = found
    return shares


def _nth(i: int, trial: "FrozenTrial") -> float:
    return trial.values[i]


def _png(shares: Shares) -> PngFigure:
    names = _names(shares)
    figure = canvas(1.3 + 0.22 * (len(shares) + 1) * len(names))
    axes = figure.subplots()
    height = 0.8 / len(shares)
    for i, (objective, found) in enumerate(shares.items()):
        rows = np.arange(len(names)) + (i - (len(shares) - 1) / 2) * height
        widths = list(map(found.get, names))
        shown = OBJECTIVES[objective]
        axes.barh(rows, widths, height=height * 0.92, color=shown.colour, label=shown.label)
        for row, width in zip(rows, widths, strict=True):
            axes.text(width, row, f" {width:.2f}", va="center", fontsize=7)
    axes.set_yticks(range(len(names)), _titles(names))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.05)
    axes.set_xlabel("share of the objective's main effects")
    axes.spines[["top", "right"]].set_visible(False)
    legend(figure, 5)
    return figure


def _names(shares: Shares) -> list[str]:
    """Settings, the one that moves most first."""
    names = list(next(iter(shares.values())))
    return sorted(names, key=lambda name: -max(found[name] for found in shares.values()))


def _titles(names: Sequence[str]) -> list[str]:
    return [name.replace("_", " ") for name in names]


def _html(shares: Shares) -> "go.Figure":
    import plotly.graph_objects as go

    names = _names(shares)
    figure = go.Figure()
    for objective, found in shares.items():
        bar = go.Bar(
            x=list(map(found.get, names)),
            y=_titles(names),
            orientation="h",
            name=OBJECTIVES[objective].label,
            marker_color=OBJECTIVES[objective].colour,
            hovertemplate="%{y}: %{x:.3f}",
        )
        figure.add_trace(bar)
    figure.update_layout(barmode="group", height=140 + 26 * (len(shares) + 1) * len(names))
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title="share of the objective's main effects", range=[0, 1.05])
    return figure
