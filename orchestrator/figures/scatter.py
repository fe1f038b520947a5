"""Trials as points: LoRA rank against peak memory, and each pair of objectives with the front drawn."""

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure as PngFigure

from orchestrator.analysis.front import losses_of, objective_value
from orchestrator.analysis.pareto import pareto_mask
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.figures.style import (
    PRECISION_COLOURS,
    PRECISION_NAMES,
    LeftOut,
    Picture,
    canvas,
    hover,
    ring,
)
from orchestrator.objectives import OBJECTIVES
from trainables.values.results import TrialResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

RANK_TITLE, LOSS_TITLE = "What a rank costs in memory", "What memory buys"
SIDE_STEP = 2**0.06
"""Points of the two precisions are moved apart by this factor of the rank, so that neither hides the other."""
RING = "on the Pareto front"
NOTHING = "no trial completed with both its figures"


def rank_memory(snapshot: SweepSnapshot) -> Picture | LeftOut:
    """Rank against peak memory, absolute and above each precision's cheapest trial."""
    trials = [trial for trial in snapshot.trials if trial.state == "completed" and trial.history]
    if not trials:
        return LeftOut(name="rank_memory", reason="no trial completed")
    return Picture(
        name="rank_memory",
        title=RANK_TITLE,
        notes=(
            _rings(snapshot),
            "The precisions are set a little aside of their rank, so that neither hides the other.",
        ),
        png=partial(_rank_png, snapshot, trials),
        html=partial(_rank_html, snapshot, trials),
    )


def loss_memory(snapshot: SweepSnapshot) -> Picture | LeftOut:
    """Held-out loss against peak memory, whatever the sweep's objectives."""
    return pair(snapshot, "peak_memory_mib", "eval_loss_nats")


def pairs(snapshot: SweepSnapshot) -> list[Picture | LeftOut]:
    """Every pair of the sweep's objectives, beside `loss_memory`."""
    ordered = [objective for objective in OBJECTIVES if objective in snapshot.settings.objectives]
    found = combinations(ordered, 2)
    return [pair(snapshot, x, y) for x, y in found if (x, y) != ("peak_memory_mib", "eval_loss_nats")]


def pair(snapshot: SweepSnapshot, x: str, y: str) -> Picture | LeftOut:
    """One objective against another; a line joins the members of the front that none beats in both."""
    name = f"{OBJECTIVES[y].short}_{OBJECTIVES[x].short}"
    trials = [t for t in snapshot.trials if t.state == "completed" and losses_of(t, (x, y)) is not None]
    if not trials:
        return LeftOut(name=name, reason=NOTHING)
    is_known = name == "loss_memory"
    return Picture(
        name=name,
        title=LOSS_TITLE if is_known else f"{OBJECTIVES[y].label.capitalize()} against {OBJECTIVES[x].label}",
        notes=(
            _rings(snapshot),
            "The line joins those that no other of them beats in both of this figure's objectives.",
        ),
        png=partial(_pair_png, snapshot, trials, x, y),
        html=partial(_pair_html, snapshot, trials, x, y),
    )


def edge(members: Sequence[TrialResult], x: str, y: str) -> list[TrialResult]:
    """Members of a front that no other one beats in both objectives, from the best of the first to the worst.

    In that order a line that goes along x first and then along y ends where the dominated region begins,
    whichever way the objectives are meant.
    """
    counted = [(trial, losses) for trial in members if (losses := losses_of(trial, (x, y))) is not None]
    if not counted:
        return []
    mask = pareto_mask(np.array([losses for _, losses in counted]))
    kept = sorted((losses, trial.number, trial) for (trial, losses), on in zip(counted, mask, strict=True) if on)
    return [trial for _, _, trial in kept]


def _rings(snapshot: SweepSnapshot) -> str:
    names = ", ".join(OBJECTIVES[objective].label for objective in snapshot.settings.objectives)
    return f"Each point is a completed trial. Black rings: on the Pareto front over {names}."


def _rank_x(trial: TrialResult) -> float:
    return trial.config.rank * (SIDE_STEP if trial.config.precision == "nf4" else 1 / SIDE_STEP)


def _value(trial: TrialResult, objective: str) -> float:
    """In the unit of the axis."""
    return (objective_value(trial, objective) or 0.0) * OBJECTIVES[objective].factor


def _rank_panels(trials: Sequence[TrialResult]) -> list[tuple[str, dict[str, float]]]:
    """Of each panel the title of its y axis and the trials' values by key."""
    peaks = {trial.key: _value(trial, "peak_memory_mib") for trial in trials}
    floors = {p: min((peaks[t.key] for t in trials if t.config.precision == p), default=0.0) for p in PRECISION_NAMES}
    above = {trial.key: peaks[trial.key] - floors[trial.config.precision] for trial in trials}
    return [("peak memory (MiB)", peaks), ("MiB above the precision's cheapest trial", above)]


def _points(
    axes: Any, snapshot: SweepSnapshot, trials: Sequence[TrialResult], xs: list[float], ys: list[float]
) -> None:
    for precision, colour in PRECISION_COLOURS.items():
        chosen = [i for i, trial in enumerate(trials) if trial.config.precision == precision]
        if chosen:
            x, y = [xs[i] for i in chosen], [ys[i] for i in chosen]
            axes.scatter(x, y, s=34, color=colour, label=PRECISION_NAMES[precision], alpha=0.75)
    on = [i for i, trial in enumerate(trials) if trial.key in snapshot.front.keys]
    if on:
        ring(axes, [xs[i] for i in on], [ys[i] for i in on], RING)
    axes.grid(alpha=0.25)
    axes.margins(0.07)


def _rank_png(snapshot: SweepSnapshot, trials: Sequence[TrialResult]) -> PngFigure:
    figure = canvas(4.3)
    ranks = sorted({trial.config.rank for trial in trials})
    for axes, (title, values) in zip(figure.subplots(1, 2), _rank_panels(trials), strict=True):
        axes.set_xscale("log", base=2)
        _points(axes, snapshot, trials, [_rank_x(t) for t in trials], [values[t.key] for t in trials])
        axes.set_xticks(ranks, [str(rank) for rank in ranks])
        axes.minorticks_off()
        axes.set_xlabel("LoRA rank")
        axes.set_ylabel(title)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False)
    return figure


def _pair_png(snapshot: SweepSnapshot, trials: Sequence[TrialResult], x: str, y: str) -> PngFigure:
    figure = canvas(4.6)
    axes = figure.subplots()
    on_edge = edge(snapshot.front.members, x, y)
    xs, ys = [_value(t, x) for t in on_edge], [_value(t, y) for t in on_edge]
    axes.step(xs, ys, where="post", color="black", linewidth=1, alpha=0.6, zorder=1)
    _points(axes, snapshot, trials, [_value(t, x) for t in trials], [_value(t, y) for t in trials])
    axes.ticklabel_format(useOffset=False)
    axes.set_xlabel(OBJECTIVES[x].axis)
    axes.set_ylabel(OBJECTIVES[y].axis)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False)
    return figure


def _traces(
    snapshot: SweepSnapshot, trials: Sequence[TrialResult], xs: list[float], ys: list[float], *, legend: bool = True
) -> "list[go.Scatter]":
    import plotly.graph_objects as go

    traces = []
    for precision, colour in PRECISION_COLOURS.items():
        chosen = [i for i, trial in enumerate(trials) if trial.config.precision == precision]
        on_front = [trials[i].key in snapshot.front.keys for i in chosen]
        marker = {
            "color": colour,
            "size": [13 if on else 9 for on in on_front],
            "opacity": 0.8,
            "line": {"color": "black", "width": [2.5 if on else 0 for on in on_front]},
        }
        common = {"mode": "markers", "legendgroup": precision, "showlegend": legend, "hoverinfo": "text"}
        trace = go.Scatter(
            x=[xs[i] for i in chosen],
            y=[ys[i] for i in chosen],
            name=PRECISION_NAMES[precision],
            text=[hover(trials[i]) for i in chosen],
            marker=marker,
            **common,
        )
        traces += [trace] if chosen else []
    return traces


def _rank_html(snapshot: SweepSnapshot, trials: Sequence[TrialResult]) -> "go.Figure":
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
    for column, (title, values) in enumerate(_rank_panels(trials), start=1):
        xs, ys = [_rank_x(t) for t in trials], [values[t.key] for t in trials]
        for trace in _traces(snapshot, trials, xs, ys, legend=column == 1):
            figure.add_trace(trace, row=1, col=column)
        figure.update_yaxes(title=title, row=1, col=column)
    ranks = sorted({trial.config.rank for trial in trials})
    figure.update_xaxes(type="log", tickvals=ranks, ticktext=[str(r) for r in ranks], title="LoRA rank")
    return figure


def _pair_html(snapshot: SweepSnapshot, trials: Sequence[TrialResult], x: str, y: str) -> "go.Figure":
    import plotly.graph_objects as go

    on_edge = edge(snapshot.front.members, x, y)
    line = {"color": "black", "width": 1, "shape": "hv"}
    xs, ys = [_value(t, x) for t in on_edge], [_value(t, y) for t in on_edge]
    figure = go.Figure()
    if on_edge:
        figure.add_trace(go.Scatter(x=xs, y=ys, mode="lines", line=line, name="front", hoverinfo="skip", opacity=0.6))
    for trace in _traces(snapshot, trials, [_value(t, x) for t in trials], [_value(t, y) for t in trials]):
        figure.add_trace(trace)
    figure.update_xaxes(title=OBJECTIVES[x].axis)
    figure.update_yaxes(title=OBJECTIVES[y].axis)
    return figure
