"""What each process of a sweep did when: one bar a process, coloured by phase."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from matplotlib.figure import Figure as PngFigure

from orchestrator.analysis.moment import WRITING_SECONDS
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.analysis.timeline import IDLE, ProcessTime, by_process, pauses
from orchestrator.figures.style import LeftOut, Picture, canvas, legend

if TYPE_CHECKING:
    import plotly.graph_objects as go

NAME, TITLE = "timeline", "Where the sweep's time went"
X_AXIS = "time since the first thing noted (s)"
COLOURS = ("#009e73", "#56b4e9", "#e69f00", "#cc79a7", "#f0e442", "#999999", "#000000", "#d55e00", "#0072b2")
"""Okabe and Ito's palette, one a phase in the order in which they first appear."""
BAR = 0.7

Bars = list[tuple[int, float, float]]
"""Place of the process, seconds since the beginning, seconds of the bar."""


def draw(snapshot: SweepSnapshot) -> Picture | LeftOut:
    """Bars of all phases but idling, which stays white, and but writing, which this picture is itself a part of: the
    same whenever it is drawn."""
    rests = pauses(snapshot.spans)
    processes = by_process([span for span in snapshot.spans if span.phase not in WRITING_SECONDS], rests)
    if not processes:
        return LeftOut(name=NAME, reason="no process has noted yet what it did when")
    notes = (
        "Training includes the held-out loss at each rung. Where one thing was done inside another, as loading the "
        "base in a comparison, the bar is of the inner one. White is idle: waiting, or what is not noted.",
        *(["Time between two commands is left out."] if rests else []),
    )
    return Picture(name=NAME, title=TITLE, notes=notes, png=partial(_png, processes), html=partial(_html, processes))


def _bars(processes: Sequence[ProcessTime]) -> Iterator[tuple[str, str, Bars]]:
    """Of each phase: its name, its colour, its bars."""
    began = min(one.began for one in processes)
    found: dict[str, Bars] = {}
    for place, one in enumerate(processes):
        for piece in one.pieces:
            if piece.phase != IDLE:
                found.setdefault(piece.phase, []).append((place, piece.began - began, piece.seconds))
    for (phase, bars), colour in zip(found.items(), COLOURS * len(found), strict=False):
        yield phase, colour, bars


def _png(processes: Sequence[ProcessTime]) -> PngFigure:
    figure = canvas(1.6 + 0.3 * len(processes))
    axes = figure.subplots()
    for phase, colour, bars in _bars(processes):
        places, starts, seconds = zip(*bars, strict=True)
        axes.barh(places, seconds, left=starts, height=BAR, color=colour, label=phase)
    axes.set_yticks(range(len(processes)), [one.process for one in processes])
    axes.invert_yaxis()
    axes.set_xlabel(X_AXIS)
    legend(figure, 5)
    return figure


def _html(processes: Sequence[ProcessTime]) -> "go.Figure":
    import plotly.graph_objects as go

    figure = go.Figure()
    names = [one.process for one in processes]
    for phase, colour, bars in _bars(processes):
        places, starts, seconds = zip(*bars, strict=True)
        figure.add_bar(
            name=phase,
            orientation="h",
            y=[names[place] for place in places],
            base=starts,
            x=seconds,
            width=BAR,
            marker={"color": colour},
            hovertemplate=f"{phase}, %{{x:.1f}} s<extra>%{{y}}</extra>",
        )
    figure.update_layout(barmode="overlay", height=160 + 34 * len(processes))
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=names)
    figure.update_xaxes(title=X_AXIS)
    return figure
