"""Settings and objectives of each trial as one line through parallel axes."""

import html as markup
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure as PngFigure
from numpy.typing import ArrayLike, NDArray

from orchestrator.analysis.describe import targets
from orchestrator.analysis.front import is_candidate, losses_of
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.figures.columns import Columns
from orchestrator.figures.style import PRECISION_COLOURS, PRECISION_NAMES, LeftOut, Picture, canvas, legend
from orchestrator.objectives import OBJECTIVES
from trainables.values.config import Precision, TrialConfig
from trainables.values.results import TrialResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

NAME, TITLE = "parallel_coordinates", "Settings and what came of them"
LOGARITHMIC = frozenset({"rank", "learning rate", "alpha / rank"})
N_TICKS = 5


SETTINGS: Mapping[str, Callable[[TrialConfig], Any]] = {
    "precision": lambda config: PRECISION_NAMES[config.precision].partition(" (")[0],
    "rank": attrgetter("rank"),
    "alpha / rank": lambda config: config.alpha / config.rank,
    "targets": targets,
    "learning rate": attrgetter("learning_rate"),
    "dropout": attrgetter("dropout"),
    "rank stabilized": attrgetter("rank_stabilized"),
    "batch size": attrgetter("batch_size"),
    "max length tokens": attrgetter("max_length_tokens"),
    "max steps": attrgetter("max_steps"),
    "seed": attrgetter("seed"),
    "engine": attrgetter("engine"),
    "loop": attrgetter("loop"),
}
"""Title of an axis -> its value in a config."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One vertical axis.

    Attributes:
        places: (n_trials,), of each trial on the axis, in units of its own (a logarithm, an index or the value).
        ticks: place -> text.
    """

    title: str
    places: NDArray[np.float64]
    ticks: Mapping[float, str]

    def shares(self, places: ArrayLike) -> NDArray[np.float64]:
        """Places as shares of the axis' length, 0 to 1."""
        low, high = self.places.min(), self.places.max()
        return (np.asarray(places) - low) / (high - low) if high > low else np.full(np.shape(places), 0.5)


def draw(snapshot: SweepSnapshot) -> Picture | LeftOut:
    """One line a candidate that completed with all objectives; settings that never differ are left out."""
    objectives = snapshot.settings.objectives
    trials = [t for t in snapshot.trials if is_candidate(t) and t.history and losses_of(t, objectives) is not None]
    if len(trials) < 2:
        return LeftOut(name=NAME, reason=f"{len(trials)} completed trials with all objectives, at least 2 are needed")
    columns = Columns.of(trials, snapshot)
    axes = [*_settings(trials), *_objectives(columns, objectives)]
    notes = (
        "Each line is a completed trial of the search or a baseline; settings that are the same for all are left out. "
        "On the Pareto front: thick lines in the picture, the last axis of the interactive form; there, drag along an "
        "axis to choose lines, and drag a title to move its axis.",
    )
    return Picture(
        name=NAME,
        title=TITLE,
        notes=notes,
        png=partial(_png, columns, axes),
        html=partial(_html, columns, axes),
        wide=True,
    )


def _settings(trials: Sequence[TrialResult]) -> Iterator[Axis]:
    configs = list(map(attrgetter("config"), trials))
    for title, setting in SETTINGS.items():
        values = list(map(setting, configs))
        if len(set(values)) > 1:
            yield _axis(title, values)


def _axis(title: str, values: Sequence[Any]) -> Axis:
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        order = sorted(set(values), key=str)
        places = np.array(list(map(order.index, values)), dtype=float)
        return Axis(title=title, places=places, ticks=dict(enumerate(map(str, order))))
    logarithmic = title in LOGARITHMIC
    places = np.log10(values) if logarithmic else np.array(values, dtype=float)
    distinct = np.unique(places)
    if len(distinct) > 8:
        return Axis(title=title, places=places, ticks=_ticks(_even(places), ".2g", logarithmic=logarithmic))
    return Axis(title=title, places=places, ticks=_ticks(distinct, ".3g", logarithmic=logarithmic))


def _even(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places of ticks from the least to the greatest."""
    low, high = places.min(), places.max()
    return np.array([low]) if low == high else low + (high - low) * np.arange(N_TICKS) / (N_TICKS - 1)


def _ticks(places: NDArray[np.float64], form: str, *, logarithmic: bool = False) -> dict[float, str]:
    """Place -> text."""
    return {place: format(10**place if logarithmic else place, form) for place in places.tolist()}


def _objectives(columns: Columns, objectives: Sequence[str]) -> Iterator[Axis]:
    for objective in objectives:
        shown = OBJECTIVES[objective]
        title = f"{shown.label} {shown.axis[shown.axis.index('(') :]}"
        values = columns.objective(objective)
        yield Axis(title=title, places=values, ticks=_ticks(_even(values), ".5g"))


def _broken(title: str) -> str:
    """A title in two lines, its unit in the second."""
    return title.replace(" (", "\n(", 1)


def _precisions(columns: Columns) -> list[Precision]:
    """Those of the trials, always in one order."""
    return list(dict(columns.by_precision()))


def _png(columns: Columns, axes: Sequence[Axis]) -> PngFigure:
    figure = canvas(4.6)
    panel = figure.subplots()
    lines = np.stack([axis.shares(axis.places) for axis in axes], axis=1)  # (n_trials, n_axes)
    for i in np.argsort(columns.on_front, kind="stable"):  # the front on top
        width, alpha = (2.6, 1.0) if columns.on_front[i] else (1.0, 0.4)
        panel.plot(lines[i], color=PRECISION_COLOURS[columns.precision[i]], linewidth=width, alpha=alpha)
    for x, axis in enumerate(axes):
        panel.axvline(x, color="black", linewidth=0.8)
        for place, text in axis.ticks.items():
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
            panel.text(x + 0.03, axis.shares(place), text, fontsize=7.5, va="center", bbox=box, parse_math=False)
    panel.set_xticks(range(len(axes)), [_broken(axis.title) for axis in axes], fontsize=8)
    panel.xaxis.tick_top()
    panel.tick_params(length=0)
    panel.set_yticks([])
    panel.set_xlim(-0.15, len(axes) - 0.55)
    panel.set_ylim(-0.06, 1.06)
    panel.spines[:].set_visible(False)
    for precision in _precisions(columns):
        panel.plot([], [], color=PRECISION_COLOURS[precision], label=PRECISION_NAMES[precision])
    legend(figure, 2)
    return figure


def _html(columns: Columns, axes: Sequence[Axis]) -> "go.Figure":
    import plotly.graph_objects as go

    dimensions = []
    for axis in axes:
        label, text = _broken(axis.title).replace("\n", "<br>"), list(map(markup.escape, axis.ticks.values()))
        ticks = {"tickvals": list(axis.ticks), "ticktext": text}
        dimensions.append({"label": label, "values": axis.places.tolist(), **ticks})
    marks = {"label": "on the front", "values": columns.on_front.astype(float).tolist(), "tickvals": [0, 1]}
    dimensions.append({**marks, "ticktext": ["no", "yes"], "range": [0, 1]})
    scale = [[0, PRECISION_COLOURS["nf4"]], [1, PRECISION_COLOURS["16bit"]]]
    colour = (columns.precision == "16bit").astype(float).tolist()
    lines = go.Parcoords(
        line={"color": colour, "colorscale": scale, "cmin": 0, "cmax": 1},
        dimensions=dimensions,
        labelside="bottom",
        domain={"x": [0.03, 0.96], "y": [0.06, 1.0]},
    )
    figure = go.Figure(lines)
    for i, precision in enumerate(_precisions(columns)):
        colour_text = f'<span style="color:{PRECISION_COLOURS[precision]}">\u2501 {PRECISION_NAMES[precision]}</span>'
        where = {"x": 0.03 + 0.14 * i, "y": -0.16, "xref": "paper", "yref": "paper", "xanchor": "left"}
        figure.add_annotation(text=colour_text, showarrow=False, **where)
    return figure
