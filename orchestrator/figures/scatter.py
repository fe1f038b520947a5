"""Trials as points: LoRA rank against peak memory, and each pair of objectives with the front drawn."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations, compress
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure as PngFigure
from numpy.typing import NDArray

from orchestrator.analysis.front import losses_of
from orchestrator.analysis.noise import Noise, noise_of
from orchestrator.analysis.pareto import pareto_mask
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.figures.columns import Columns, beyond
from orchestrator.figures.style import PRECISION_COLOURS, PRECISION_NAMES, LeftOut, Picture, canvas, hover, legend, ring
from orchestrator.objectives import OBJECTIVES
from trainables.values.config import Precision
from trainables.values.results import TrialResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

Values = NDArray[np.float64]
"""(n_trials,), places on an axis."""
RANK_TITLE, LOSS_TITLE = "What a rank costs in memory", "What memory buys"
SIDE_STEP = 2**0.06
"""Points of the two precisions are moved apart by this factor of the rank, so that neither hides the other."""
RING = "on the Pareto front"
LOST = "4 bits lose more than the margin"
LOSS_MEMORY = ("peak_memory_mib", "eval_loss_nats")
NOTHING = "no trial completed with both its figures"


def rank_memory(snapshot: SweepSnapshot) -> Picture | LeftOut:
    """Rank against peak memory, absolute and above each precision's cheapest trial."""
    trials = [trial for trial in snapshot.trials if trial.state == "completed" and trial.history]
    if not trials:
        return LeftOut(name="rank_memory", reason="no trial completed")
    columns = Columns.of(trials, snapshot)
    return Picture(
        name="rank_memory",
        title=RANK_TITLE,
        notes=(
            _rings(snapshot),
            "The precisions are set a little aside of their rank, so that neither hides the other.",
        ),
        png=partial(_rank_png, columns),
        html=partial(_rank_html, columns),
        wide=True,
    )


def loss_memory(snapshot: SweepSnapshot) -> Picture | LeftOut:
    """Held-out loss against peak memory, whatever the sweep's objectives."""
    return pair(snapshot, *LOSS_MEMORY)


def pairs(snapshot: SweepSnapshot) -> list[Picture | LeftOut]:
    """Every pair of the sweep's objectives, beside `loss_memory`."""
    ordered = filter(snapshot.settings.objectives.__contains__, OBJECTIVES)
    return [pair(snapshot, *names) for names in combinations(ordered, 2) if names != LOSS_MEMORY]


def pair(snapshot: SweepSnapshot, x: str, y: str) -> Picture | LeftOut:
    """One objective against another; a line joins the members of the front that are best in both, by value."""
    name = f"{OBJECTIVES[y].short}_{OBJECTIVES[x].short}"
    trials = [t for t in snapshot.trials if t.state == "completed" and losses_of(t, (x, y)) is not None]
    if not trials:
        return LeftOut(name=name, reason=NOTHING)
    columns, on_edge = Columns.of(trials, snapshot), Columns.of(edge(snapshot.front.members, x, y), snapshot)
    noise = noise_of(snapshot.trials, (x, y), snapshot.repeats)
    is_known = name == "loss_memory"
    return Picture(
        name=name,
        title=LOSS_TITLE if is_known else f"{OBJECTIVES[y].label.capitalize()} against {OBJECTIVES[x].label}",
        notes=(
            _rings(snapshot),
            "The line joins those of them that are beaten by no other in both of this figure's objectives, by value.",
            "Band: values that are not told apart from the line's. Bars: where 90 % of equal runs lie, at configs that "
            "ran under several seeds.",
        ),
        png=partial(_pair_png, columns, on_edge, noise),
        html=partial(_pair_html, columns, on_edge, noise),
    )


def band(on_edge: Columns, noise: Noise, x: str, last: float) -> tuple[Values, Values, Values] | None:
    """Along x, what lies beyond a line by no more than the noise of y; None where there is no line or no noise.

    Args:
        last: where on x the band ends.
    Returns:
        x, and y on the line and at the noise's end.
    """
    if not noise.margin or not len(on_edge.trials):
        return None
    ys = on_edge.objective(noise.objective)
    far = beyond(ys, noise, noise.margin * OBJECTIVES[noise.objective].sign)
    return np.append(on_edge.objective(x), last), np.append(ys, ys[-1]), np.append(far, far[-1])


def edge(members: Sequence[TrialResult], x: str, y: str) -> list[TrialResult]:
    """Members of a front that no other one beats in both objectives, from the best of the first to the worst.

    In that order a line that goes along x first and then along y ends where the dominated region begins,
    whichever way the objectives are meant.
    """
    counted = []
    for trial in members:
        losses = losses_of(trial, (x, y))
        if losses is not None:
            counted.append((losses, trial.number, trial))
    if not counted:
        return []
    kept = compress(counted, pareto_mask([losses for losses, *_ in counted]))
    return [trial for *_, trial in sorted(kept, key=itemgetter(0, 1))]


def _rings(snapshot: SweepSnapshot) -> str:
    names = ", ".join(OBJECTIVES[objective].label for objective in snapshot.settings.objectives)
    return (
        "Each point is a completed trial, hollow ones seed replicates and baselines that are no point of the space. "
        f"Rings: on the Pareto front over {names}; off it is what they beat, better by more than the noise in one and "
        "worse by more in none. Noise: "
        f"{', '.join(one.text for one in snapshot.front.noise)}."
    )


def _rank_x(columns: Columns) -> Values:
    ranks = columns.column(lambda trial: trial.config.rank)
    return ranks * np.where(columns.precision == "nf4", SIDE_STEP, 1 / SIDE_STEP)


def _ranks(columns: Columns) -> list[int]:
    return sorted(set(columns.column(lambda trial: trial.config.rank).tolist()))


def _rank_panels(columns: Columns) -> dict[str, Values]:
    """Title of each panel's y axis -> the trials' values."""
    peaks = columns.objective("peak_memory_mib")
    above = peaks.copy()
    for _, chosen in columns.by_precision():
        above[chosen] -= peaks[chosen].min()
    return {"peak memory (MiB)": peaks, "MiB above the precision's cheapest trial": above}


def _points(axes: Any, columns: Columns, xs: Values, ys: Values) -> None:
    for precision, chosen in columns.by_precision():
        colour, label = PRECISION_COLOURS[precision], PRECISION_NAMES[precision]
        inside = np.where(columns.searched[chosen], colour, "white")
        axes.scatter(xs[chosen], ys[chosen], s=34, facecolors=inside, edgecolors=colour, alpha=0.75)
        axes.scatter([], [], s=34, color=colour, label=label)
    if columns.lost.any():
        axes.scatter(xs[columns.lost], ys[columns.lost], s=30, marker="x", color="black", label=LOST, gid="lost")
    if columns.on_front.any():
        ring(axes, xs[columns.on_front], ys[columns.on_front], RING)
    axes.grid(alpha=0.25)
    axes.margins(0.07)


def _rank_png(columns: Columns) -> PngFigure:
    figure, ranks = canvas(4.3), _ranks(columns)
    for axes, (title, values) in zip(figure.subplots(1, 2), _rank_panels(columns).items(), strict=True):
        axes.set_xscale("log", base=2)
        _points(axes, columns, _rank_x(columns), values)
        axes.set_xticks(ranks, list(map(str, ranks)))
        axes.minorticks_off()
        axes.set_xlabel("LoRA rank")
        axes.set_ylabel(title)
    legend(figure, 3, figure.axes[0])
    return figure


def _pair_png(columns: Columns, on_edge: Columns, noise: Sequence[Noise]) -> PngFigure:
    x, y = (one.objective for one in noise)
    figure = canvas(4.6)
    axes = figure.subplots()
    line = {"where": "post", "color": "black", "linewidth": 1, "alpha": 0.6, "zorder": 1}
    axes.step(on_edge.objective(x), on_edge.objective(y), **line)
    xs, ys = columns.objective(x), columns.objective(y)
    if shaded := band(on_edge, noise[1], x, xs.max()):
        axes.fill_between(
            *shaded, step="post", color="black", alpha=0.08, linewidth=0, label="not told apart", zorder=0
        )
    for precision, chosen in columns.by_precision():
        reach = [columns.reach(one)[:, chosen] if one.margin else None for one in noise]
        bars = {"fmt": "none", "ecolor": PRECISION_COLOURS[precision], "elinewidth": 1, "capsize": 3, "alpha": 0.75}
        axes.errorbar(xs[chosen], ys[chosen], xerr=reach[0], yerr=reach[1], **bars)
    _points(axes, columns, xs, ys)
    axes.ticklabel_format(useOffset=False)
    axes.set_xlabel(OBJECTIVES[x].axis)
    axes.set_ylabel(OBJECTIVES[y].axis)
    legend(figure, 4, axes)
    return figure


def _markers(columns: Columns, precision: Precision, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """Of the chosen trials: hollow outside the search, larger and ringed on the front."""
    on_front = columns.on_front[chosen]
    return {
        "color": PRECISION_COLOURS[precision],
        "symbol": np.where(columns.searched[chosen], "circle", "circle-open").tolist(),
        "size": np.where(on_front, 13, 9).tolist(),
        "opacity": 0.8,
        "line": {"color": "black", "width": np.where(on_front, 2.5, 0).tolist()},
    }


def _traces(
    columns: Columns, xs: Values, ys: Values, noise: Sequence[Noise] = (), *, legend: bool = True
) -> "Iterator[go.Scatter]":
    import plotly.graph_objects as go

    for precision, chosen in columns.by_precision():
        bars = {}
        for axis, one in zip(("error_x", "error_y"), noise, strict=False):
            if one.margin:
                low, high = (np.where(np.isnan(end), None, end).tolist() for end in columns.reach(one)[:, chosen])
                bars[axis] = {"type": "data", "symmetric": False, "array": high, "arrayminus": low, "thickness": 1}
        yield go.Scatter(
            x=xs[chosen].tolist(),
            y=ys[chosen].tolist(),
            name=PRECISION_NAMES[precision],
            text=list(map(hover, columns.trials[chosen])),
            marker=_markers(columns, precision, chosen),
            mode="markers",
            legendgroup=precision,
            showlegend=False,
            hoverinfo="text",
            **bars,
        )
        # the legend shows a trace by its first point, which may be a hollow one
        own = {"color": PRECISION_COLOURS[precision], "size": 9}
        yield _mute([None], [None], PRECISION_NAMES[precision], own, group=precision, legend=legend)
    if columns.lost.any():
        cross = {"symbol": "x-thin", "size": 8, "line": {"color": "black", "width": 1.5}}
        lost_xs, lost_ys = xs[columns.lost].tolist(), ys[columns.lost].tolist()
        yield _mute(lost_xs, lost_ys, LOST, cross, group=LOST, legend=legend)


def _mute(
    xs: list[float | None], ys: list[float | None], name: str, marker: dict[str, Any], *, group: str, legend: bool
) -> "go.Scatter":
    """Points that say nothing when one points at them."""
    import plotly.graph_objects as go

    look = {"name": name, "mode": "markers", "marker": marker}
    return go.Scatter(x=xs, y=ys, **look, legendgroup=group, showlegend=legend, hoverinfo="skip")


def _rank_html(columns: Columns) -> "go.Figure":
    from plotly.subplots import make_subplots

    figure, ranks = make_subplots(rows=1, cols=2, horizontal_spacing=0.12), _ranks(columns)
    for column, (title, values) in enumerate(_rank_panels(columns).items(), start=1):
        for trace in _traces(columns, _rank_x(columns), values, legend=column == 1):
            figure.add_trace(trace, row=1, col=column)
        figure.update_yaxes(title=title, row=1, col=column)
    figure.update_xaxes(type="log", tickvals=ranks, ticktext=list(map(str, ranks)), title="LoRA rank")
    return figure


def _pair_html(columns: Columns, on_edge: Columns, noise: Sequence[Noise]) -> "go.Figure":
    import plotly.graph_objects as go

    figure, (x, y) = go.Figure(), (one.objective for one in noise)
    if shaded := band(on_edge, noise[1], x, columns.objective(x).max()):
        along, near, far = (np.asarray(values).tolist() for values in shaded)
        shape = {"mode": "lines", "line": {"width": 0, "shape": "hv"}, "hoverinfo": "skip"}
        figure.add_trace(go.Scatter(x=along, y=near, showlegend=False, **shape))
        colour = {"fill": "tonexty", "fillcolor": "rgba(0, 0, 0, 0.08)"}
        figure.add_trace(go.Scatter(x=along, y=far, name="not told apart", **colour, **shape))
    if len(on_edge.trials):
        xs, ys = on_edge.objective(x).tolist(), on_edge.objective(y).tolist()
        line = {"color": "black", "width": 1, "shape": "hv"}
        figure.add_trace(go.Scatter(x=xs, y=ys, mode="lines", line=line, name="front", hoverinfo="skip", opacity=0.6))
    figure.add_traces(list(_traces(columns, columns.objective(x), columns.objective(y), noise)))
    figure.update_xaxes(title=OBJECTIVES[x].axis)
    figure.update_yaxes(title=OBJECTIVES[y].axis)
    return figure
