"""Settings and objectives of each trial as one line through parallel axes."""

import html as markup
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from matplotlib.figure import Figure as PngFigure

from orchestrator.analysis.describe import targets
from orchestrator.analysis.front import is_candidate, losses_of, objective_value
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.figures.style import (
    PRECISION_COLOURS,
    PRECISION_NAMES,
    LeftOut,
    Picture,
    canvas,
)
from orchestrator.objectives import OBJECTIVES
from trainables.values.config import Precision
from trainables.values.results import TrialResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

NAME, TITLE = "parallel_coordinates", "Settings and what came of them"
LOGARITHMIC = frozenset({"rank", "learning rate", "alpha / rank"})
N_TICKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One vertical axis.

    Attributes:
        places: of each trial on the axis, in units of its own (a logarithm, an index or the value).
        ticks: place -> text.
    """

    title: str
    places: tuple[float, ...]
    ticks: Mapping[float, str]

    @property
    def shares(self) -> list[float]:
        """Places as shares of the axis' length, 0 to 1."""
        return [self.share(place) for place in self.places]

    def share(self, place: float) -> float:
        low, high = min(self.places), max(self.places)
        return (place - low) / (high - low) if high > low else 0.5


def draw(snapshot: SweepSnapshot) -> Picture | LeftOut:
    """One line a candidate that completed with all objectives; settings that never differ are left out."""
    objectives = snapshot.settings.objectives
    trials = [t for t in snapshot.trials if is_candidate(t) and t.history and losses_of(t, objectives) is not None]
    if len(trials) < 2:
        return LeftOut(name=NAME, reason=f"{len(trials)} completed trials with all objectives, at least 2 are needed")
    axes = [*_settings(trials), *_objectives(snapshot, trials)]
    trials_on = [trial.key in snapshot.front.keys for trial in trials]
    notes = (
        "Each line is a completed trial of the search or a baseline; settings that are the same for all are left out. "
        "On the Pareto front: thick lines in the picture, the last axis of the interactive form; there, drag along an "
        "axis to choose lines, and drag a title to move its axis.",
    )
    return Picture(
        name=NAME,
        title=TITLE,
        notes=notes,
        png=partial(_png, trials, axes, trials_on),
        html=partial(_html, trials, axes, trials_on),
    )


def _settings(trials: Sequence[TrialResult]) -> list[Axis]:
    configs = [trial.config for trial in trials]
    columns: dict[str, list] = {
        "precision": [PRECISION_NAMES[c.precision].partition(" (")[0] for c in configs],
        "rank": [c.rank for c in configs],
        "alpha / rank": [c.alpha / c.rank for c in configs],
        "targets": [targets(c) for c in configs],
        "learning rate": [c.learning_rate for c in configs],
    }
    for name in (
        "dropout",
        "rank_stabilized",
        "batch_size",
        "max_length_tokens",
        "max_steps",
        "seed",
        "engine",
        "loop",
    ):
        columns[name.replace("_", " ")] = [getattr(c, name) for c in configs]
    return [_axis(title, values) for title, values in columns.items() if len(set(values)) > 1]


def _axis(title: str, values: Sequence) -> Axis:
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        order = sorted(set(values), key=str)
        places = tuple(float(order.index(value)) for value in values)
        return Axis(title=title, places=places, ticks={float(i): str(value) for i, value in enumerate(order)})
    logarithmic = title in LOGARITHMIC
    places = tuple(math.log10(value) if logarithmic else float(value) for value in values)
    distinct = sorted(set(places))
    if len(distinct) > 8:
        return Axis(title=title, places=places, ticks=_even(places, ".2g", logarithmic=logarithmic))
    return Axis(title=title, places=places, ticks={p: f"{10**p if logarithmic else p:.3g}" for p in distinct})


def _even(places: Sequence[float], form: str, *, logarithmic: bool = False) -> dict[float, str]:
    low, high = min(places), max(places)
    if low == high:
        return {low: format(10**low if logarithmic else low, form)}
    ticks = [low + (high - low) * i / (N_TICKS - 1) for i in range(N_TICKS)]
    return {tick: format(10**tick if logarithmic else tick, form) for tick in ticks}


def _objectives(snapshot: SweepSnapshot, trials: Sequence[TrialResult]) -> list[Axis]:
    axes = []
    for objective in snapshot.settings.objectives:
        shown = OBJECTIVES[objective]
        title = f"{shown.label} {shown.axis[shown.axis.index('(') :]}"
        values = tuple((objective_value(trial, objective) or 0.0) * shown.factor for trial in trials)
        axes.append(Axis(title=title, places=values, ticks=_even(values, ".5g")))
    return axes


def _broken(title: str) -> str:
    """A title in two lines, its unit in the second."""
    return title.replace(" (", "\n(", 1)


def _precisions(trials: Sequence[TrialResult]) -> list[Precision]:
    """Those of the trials, always in one order."""
    return [p for p in PRECISION_NAMES if any(trial.config.precision == p for trial in trials)]


def _png(trials: Sequence[TrialResult], axes: Sequence[Axis], on_front: Sequence[bool]) -> PngFigure:
    figure = canvas(4.6)
    panel = figure.subplots()
    shares = [axis.shares for axis in axes]
    for i in sorted(range(len(trials)), key=lambda i: on_front[i]):  # the front on top
        precision = trials[i].config.precision
        width, alpha = (2.6, 1.0) if on_front[i] else (1.0, 0.4)
        colour = PRECISION_COLOURS[precision]
        panel.plot(range(len(axes)), [s[i] for s in shares], color=colour, linewidth=width, alpha=alpha)
    for x, axis in enumerate(axes):
        panel.axvline(x, color="black", linewidth=0.8)
        for place, text in axis.ticks.items():
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
            panel.text(x + 0.03, axis.share(place), text, fontsize=7.5, va="center", bbox=box, parse_math=False)
    panel.set_xticks(range(len(axes)), [_broken(axis.title) for axis in axes], fontsize=8)
    panel.xaxis.tick_top()
    panel.tick_params(length=0)
    panel.set_yticks([])
    panel.set_xlim(-0.15, len(axes) - 0.55)
    panel.set_ylim(-0.06, 1.06)
    panel.spines[:].set_visible(False)
    for precision in _precisions(trials):
        panel.plot([], [], color=PRECISION_COLOURS[precision], label=PRECISION_NAMES[precision])
    figure.legend(loc="outside lower left", ncols=2, frameon=False)
    return figure


def _html(trials: Sequence[TrialResult], axes: Sequence[Axis], on_front: Sequence[bool]) -> "go.Figure":
    import plotly.graph_objects as go

    dimensions = [
        {
            "label": _broken(axis.title).replace("\n", "<br>"),
            "values": list(axis.places),
            "tickvals": list(axis.ticks),
            "ticktext": [markup.escape(text) for text in axis.ticks.values()],
        }
        for axis in axes
    ]
    marks = {"label": "on the front", "values": [float(on) for on in on_front], "tickvals": [0, 1]}
    dimensions.append({**marks, "ticktext": ["no", "yes"], "range": [0, 1]})
    scale = [[0, PRECISION_COLOURS["nf4"]], [1, PRECISION_COLOURS["16bit"]]]
    colour = [float(trial.config.precision == "16bit") for trial in trials]
    lines = go.Parcoords(
        line={"color": colour, "colorscale": scale, "cmin": 0, "cmax": 1},
        dimensions=dimensions,
        labelside="bottom",
        domain={"x": [0.03, 0.96], "y": [0.06, 1.0]},
    )
    figure = go.Figure(lines)
    for i, precision in enumerate(_precisions(trials)):
        colour_text = f'<span style="color:{PRECISION_COLOURS[precision]}">\u2501 {PRECISION_NAMES[precision]}</span>'
        where = {"x": 0.03 + 0.14 * i, "y": -0.16, "xref": "paper", "yref": "paper", "xanchor": "left"}
        figure.add_annotation(text=colour_text, showarrow=False, **where)
    return figure
