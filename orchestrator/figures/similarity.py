"""How like their 16-bit baselines the 4-bit finalists are, beside what another seed and no training at all come to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure as PngFigure
from numpy.typing import NDArray

from orchestrator.analysis.describe import interval
from orchestrator.analysis.finalists import finalists
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.analysis.verdict import compared_on, comparison_of, cosine_asked
from orchestrator.figures.style import OTHER_COLOURS, PRECISION_COLOURS, LeftOut, Picture, canvas, legend
from trainables.values.findings import Comparison, Estimate, Similarity
from trainables.values.results import TrialResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

NAME, TITLE = "similarity", "How like its 16-bit baseline a 4-bit trial is"
MAX_TRIALS = 8
NEAREST = 1e-5
"""Stands for a distance of nothing on a logarithmic axis."""
COSINE_TICKS = {0.0: "0", 0.5: "0.5", 0.8: "0.8", 0.95: "0.95", 0.99: "0.99", 0.999: "0.999", 0.9999: "0.9999"}
PANELS = {
    "embedding_cosine": "embedding cosine",
    "centered_cosine": "centred cosine",
    "kl_nats": "KL to the baseline (nats per token)",
    "recovered_cosine": "recovered cosine",
    "top1_agreement": "top-1 agreement (share)",
    "token_match_rate": "greedy tokens equal (share)",
}
COSINES = frozenset({"embedding_cosine", "centered_cosine", "recovered_cosine"})
LOGARITHMIC = COSINES | {"kl_nats"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What is held against a baseline."""

    name: str
    colour: str
    symbol: str
    marker: str
    shift: float


SERIES = (
    Series(name="4 bits", colour=PRECISION_COLOURS["nf4"], symbol="circle", marker="o", shift=-0.22),
    Series(name="another seed, 16 bits", colour=PRECISION_COLOURS["16bit"], symbol="diamond", marker="D", shift=0.0),
    Series(name="not trained, 16 bits", colour=OTHER_COLOURS[0], symbol="square", marker="s", shift=0.22),
)

Mark = tuple[float, TrialResult, Similarity]
Marks = dict[Series, list[Mark]]


def compared(snapshot: SweepSnapshot) -> list[tuple[TrialResult, Comparison]]:
    """4-bit finalists with their comparison, by number."""
    pairs = []
    for trial in finalists(snapshot.trials, snapshot.settings, snapshot.front.members):
        comparison = comparison_of(trial)
        if trial.config.precision == "nf4" and comparison:
            pairs.append((trial, comparison))
    return pairs


def of_series(comparison: Comparison) -> Iterator[tuple[Series, Similarity]]:
    """Every similarity of a comparison under its name; each other seed is one."""
    quantized, replicates, untuned = SERIES
    yield quantized, comparison.quantized
    for similarity in comparison.replicates:
        yield replicates, similarity
    yield untuned, comparison.untuned


def draw(snapshot: SweepSnapshot) -> Picture | LeftOut:
    """A panel for each metric; cosines and KL on logarithmic axes, better to the right everywhere."""
    whole = compared(snapshot)
    found = whole[:MAX_TRIALS]
    if not found:
        return LeftOut(name=NAME, reason="no 4-bit finalist was compared with a 16-bit baseline")
    threshold = cosine_asked(snapshot.settings)
    notes: tuple[str, ...] = (
        f"Bars: 95 % over {found[0][1].over}, given the seed. Cosines and KL on logarithmic axes of the distance to an "
        f"equal model; right is nearer. Dashed: a cosine of {threshold:g}.",
        f"{'; '.join(_rows(found))}.".capitalize(),
    )
    if len(found) < len(whole):
        notes = (*notes, f"The first {len(found)} of {len(whole)} 4-bit finalists.")
    return Picture(
        name=NAME,
        title=TITLE,
        notes=notes,
        png=partial(_png, _marks(found), _row_labels(found), threshold),
        html=partial(_html, _marks(found), _row_labels(found), threshold),
        wide=True,
    )


def _rows(found: Sequence[tuple[TrialResult, Comparison]]) -> Iterator[str]:
    for trial, comparison in found:
        yield f"trial {trial.number} on {comparison.quantized.n_rows} {compared_on(trial)} rows"


def _x(metric: str, value: float) -> float:
    """Place on the panel's axis: a distance where it is logarithmic."""
    return max(1 - value, NEAREST) if metric in COSINES else max(value, NEAREST) if metric == "kl_nats" else value


def _place(metric: str, estimate: Estimate) -> tuple[float, float, float]:
    """Where the point is, and how far its bar goes to lower and to higher places."""
    x = _x(metric, estimate.value)
    if estimate.low is None:
        return x, 0.0, 0.0
    ends = sorted((_x(metric, estimate.low), _x(metric, estimate.high)))
    return x, max(x - ends[0], 0.0), max(ends[1] - x, 0.0)


def _marks(found: Sequence[tuple[TrialResult, Comparison]]) -> Marks:
    """Of each series: the row of every similarity, its trial, and itself."""
    marks: Marks = {}
    for row, (trial, comparison) in enumerate(found):
        for series, similarity in of_series(comparison):
            marks.setdefault(series, []).append((row + series.shift, trial, similarity))
    return dict(sorted(marks.items(), key=lambda item: SERIES.index(item[0])))


def _points(metric: str, marks: Sequence[Mark]) -> NDArray[np.float64]:
    """(4, n_marks): x, y, and how far the bar goes to lower and to higher places."""
    points = []
    for y, _, similarity in marks:
        x, low, high = _place(metric, getattr(similarity, metric))
        points.append((x, y, low, high))
    return np.transpose(points)


def _row_labels(found: Sequence[tuple[TrialResult, Comparison]]) -> list[str]:
    return [f"trial {trial.number}, rank {trial.config.rank}" for trial, _ in found]


def _ticks(metric: str, marks: Marks, threshold: float) -> dict[float, str]:
    """Of a cosine's panel: distance -> cosine, those that lie among the points."""
    places = [1 - threshold]
    for own in marks.values():
        x, _, lower, higher = _points(metric, own)
        places += [*(x - lower), *(x + higher)]
    low, high = min(places), max(places)
    return {1 - cosine: text for cosine, text in COSINE_TICKS.items() if 0.3 * low <= 1 - cosine <= 2 * high}


def _png(marks: Marks, rows: Sequence[str], threshold: float) -> PngFigure:
    figure = canvas(2.8 + 0.9 * len(rows))
    panels = figure.subplots(2, 3, sharey=True)
    for axes, (metric, title) in zip(panels.flat, PANELS.items(), strict=True):
        for series, own in marks.items():
            x, y, lower, higher = _points(metric, own)
            style = {"fmt": series.marker, "color": series.colour, "capsize": 3, "markersize": 6}
            axes.errorbar(x, y, xerr=(lower, higher), label=series.name, **style)
        axes.set_xlabel(title, fontsize=9)
        if metric in LOGARITHMIC:
            axes.set_xscale("log")
            axes.invert_xaxis()
        if metric in COSINES:
            ticks = _ticks(metric, marks, threshold)
            axes.set_xticks(list(ticks), list(ticks.values()))
            axes.minorticks_off()
        if metric == "embedding_cosine":
            axes.axvline(max(1 - threshold, NEAREST), color="black", linestyle="--", linewidth=1.2)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, axis="x")
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    legend(figure, 3, panels[0, 0])
    return figure


def _text(trial: TrialResult, series: Series, title: str, estimate: Estimate) -> str:
    return f"trial {trial.number}, rank {trial.config.rank}<br>{series.name}<br>{title}: {interval(estimate)}"


def _trace(metric: str, title: str, series: Series, marks: Sequence[Mark]) -> "go.Scatter":
    import plotly.graph_objects as go

    x, y, lower, higher = _points(metric, marks).tolist()
    return go.Scatter(
        x=x,
        y=y,
        error_x={"array": higher, "arrayminus": lower, "thickness": 1.5},
        mode="markers",
        marker={"color": series.colour, "symbol": series.symbol, "size": 10},
        name=series.name,
        legendgroup=series.name,
        showlegend=metric == next(iter(PANELS)),
        text=[_text(trial, series, title, getattr(similarity, metric)) for _, trial, similarity in marks],
        hoverinfo="text",
    )


def _html(marks: Marks, rows: Sequence[str], threshold: float) -> "go.Figure":
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=3, shared_yaxes=True, horizontal_spacing=0.05, vertical_spacing=0.22)
    for i, (metric, title) in enumerate(PANELS.items()):
        at = {"row": i // 3 + 1, "col": i % 3 + 1}
        for series, own in marks.items():
            figure.add_trace(_trace(metric, title, series, own), **at)
        figure.update_xaxes(title=title, **at)
        if metric in LOGARITHMIC:
            figure.update_xaxes(type="log", autorange="reversed", **at)
        if metric == "kl_nats":
            figure.update_xaxes(dtick=1, **at)
        if metric in COSINES:
            ticks = _ticks(metric, marks, threshold)
            figure.update_xaxes(tickvals=list(ticks), ticktext=list(ticks.values()), **at)
        if metric == "embedding_cosine":
            figure.add_vline(x=max(1 - threshold, NEAREST), line={"color": "black", "dash": "dash"}, **at)
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=rows, range=[len(rows) - 0.5, -0.5])
    figure.update_layout(height=380 + 130 * len(rows))
    return figure
