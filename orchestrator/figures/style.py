"""What all figures share: what a figure is, colours, names and units of axes, and how its head is written."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure as PngFigure

from orchestrator.analysis.describe import describe, interval
from orchestrator.analysis.snapshot import SweepSnapshot
from trainables.values.config import Precision
from trainables.values.results import TrialResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

PRECISION_COLOURS: Mapping[Precision, str] = {"nf4": "#d55e00", "16bit": "#0072b2"}
"""Okabe and Ito's palette: told apart by all eyes. These two stand for nothing but a precision."""
PRECISION_NAMES: Mapping[Precision, str] = {"nf4": "NF4 (4 bits)", "16bit": "16 bits"}
OTHER_COLOURS = ("#999999", "#000000", "#cc79a7", "#f0e442", "#009e73", "#56b4e9", "#e69f00")
"""The rest of that palette."""
WIDTH_INCHES, DOTS_PER_INCH = 9.2, 130
LINE_CHARS = 155
HEAD_INCHES, LINE_INCHES = 0.36, 0.155


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture in both its forms, drawn only when asked for.

    Attributes:
        name: of its files, without suffix.
        notes: sentences that a reader needs; the caption of the sweep is added to them.
        png, html: draw the two forms, without title and notes.
        wide: whether it has panels or long labels side by side, which a telephone has no room for.
    """

    name: str
    title: str
    notes: tuple[str, ...]
    png: Callable[[], PngFigure]
    html: Callable[[], "go.Figure"]
    wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A picture that has nothing to show, and why."""

    name: str
    reason: str


Plotter = Callable[[SweepSnapshot], Picture | LeftOut]


def canvas(height_inches: float) -> PngFigure:
    """An empty PNG figure of the common width."""
    return PngFigure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")


def _lines(notes: Sequence[str]) -> list[str]:
    return [line for note in notes for line in textwrap.wrap(note, LINE_CHARS)]


def finished_png(figure: Picture, caption: str) -> PngFigure:
    """The PNG form under its title, the caption and the notes; made as much higher as they need."""
    drawn, lines = figure.png(), _lines((caption, *figure.notes))
    head = HEAD_INCHES + LINE_INCHES * len(lines) + 0.08
    height = drawn.get_figheight() + head
    drawn.set_figheight(height)
    drawn.get_layout_engine().set(rect=(0, 0, 1, 1 - head / height))  # type: ignore[union-attr, call-arg]
    left = 0.1 / WIDTH_INCHES
    drawn.text(left, 1 - 0.1 / height, figure.title, fontsize=13, weight="bold", va="top", parse_math=False)
    for i, line in enumerate(lines):
        y = 1 - (HEAD_INCHES + LINE_INCHES * i) / height
        drawn.text(left, y, line, fontsize=8, color="#444444", va="top", parse_math=False)
    return drawn


def finished_html(figure: Picture) -> "go.Figure":
    """The interactive form as a page lays it out: without title and notes, which are the page's own text."""
    drawn = figure.html()
    drawn.update_layout(
        template="plotly_white",
        height=drawn.layout.height or 520,
        margin={"t": 36, "r": 16},
        legend={"orientation": "h", "y": -0.14, "yanchor": "top", "x": 0},
    )
    return drawn


def hover(trial: TrialResult) -> str:
    """What an interactive figure says of one trial."""
    last = trial.history[-1]
    lines = [
        f"trial {trial.number} ({trial.origin}), {trial.key[:12]}",
        f"{describe(trial.config)}, dropout {trial.config.dropout:g}",
        f"loss {last.eval_loss_nats:.4f} nats, {trial.cost.peak_memory_mib:.1f} MiB",
        f"{trial.cost.seconds_per_step * 1e3:.1f} ms/step",
    ]
    if trial.similarity:
        cosine = trial.similarity.quantized.embedding_cosine
        lines.append(f"cosine to the 16-bit baseline {interval(cosine)}")
    return "<br>".join(lines)


def legend(figure: PngFigure, n_columns: int, axes: Any = None, **options: Any) -> None:
    """Below a PNG figure: its own entries, or those of one panel that stands for all."""
    entries = axes.get_legend_handles_labels() if axes else ()
    figure.legend(*entries, loc="outside lower left", ncols=n_columns, frameon=False, **options)


def ring(axes: Any, xs: Sequence[float], ys: Sequence[float], label: str | None = None) -> None:
    """Black rings around points of a PNG figure."""
    axes.scatter(xs, ys, s=120, facecolors="none", edgecolors="black", label=label, gid="front")
