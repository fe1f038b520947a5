"""What the bytes of a training step are: a stacked bar for each measured cost key."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure as PngFigure
from numpy.typing import NDArray

from orchestrator.analysis.costs import measured_cells
from orchestrator.analysis.describe import targets
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.figures.style import OTHER_COLOURS, PRECISION_COLOURS, LeftOut, Picture, canvas, legend
from trainables.values.config import BITS, TrialConfig
from trainables.values.results import PARTS, MemoryBreakdown

if TYPE_CHECKING:
    import plotly.graph_objects as go

NAME, TITLE = "memory_breakdown", "What the memory is made of"
X_AXIS = "allocated at a training step's peak (MiB)"
MAX_BARS = 20
STAR = "\u2605"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One cost key.

    Attributes:
        members: numbers of the front's trials in it.
    """

    config: TrialConfig
    breakdown: MemoryBreakdown
    members: tuple[int, ...]

    @property
    def parts_mib(self) -> tuple[float, ...]:
        """In the order of PARTS."""
        return attrgetter(*PARTS)(self.breakdown)

    @property
    def total_mib(self) -> float:
        return sum(self.parts_mib)


def bars(snapshot: SweepSnapshot) -> list[Bar]:
    """Every cell with a breakdown, the least memory first; of too many those of the front, then the least."""
    numbers: dict[str, tuple[int, ...]] = {}
    for member in snapshot.front.members:
        numbers[member.config.cost_key] = (*numbers.get(member.config.cost_key, ()), member.number)
    found = [
        Bar(config=config, breakdown=cost.breakdown, members=numbers.get(cell, ()))
        for cell, (config, cost) in measured_cells(snapshot.trials).items()
        if cost.breakdown
    ]
    kept = sorted(found, key=lambda bar: (not bar.members, bar.total_mib))[:MAX_BARS]
    return sorted(kept, key=lambda bar: bar.total_mib)


def draw(snapshot: SweepSnapshot) -> Picture | LeftOut:
    """One bar a cell, the parts in the same order in each; they add up to the peak."""
    shown = bars(snapshot)
    if not shown:
        return LeftOut(name=NAME, reason="no cost key was measured with its parts")
    n_cells = sum(cost.breakdown is not None for _, cost in measured_cells(snapshot.trials).values())
    notes = [f"Each bar is a cost key, shared by all trials like it. {STAR} holds trials of the Pareto front."]
    if len(shown) < n_cells:
        notes.append(f"{len(shown)} of {n_cells} cells: the front's, then those that need the least.")
    shared, labels = _words(shown)
    return Picture(
        name=NAME,
        title=TITLE,
        notes=(*notes, shared),
        png=partial(_png, shown, labels),
        html=partial(_html, shown, labels),
        wide=True,
    )


def _facts(config: TrialConfig) -> dict[str, str]:
    return {
        "targets": targets(config),
        "shape": f"{config.batch_size} x {config.max_length_tokens} tokens",
        "dropout": f"dropout {'on' if config.dropout else 'off'}",
        "loop": f"{config.loop} loop",
        "engine": f"{config.engine} engine",
    }


def _words(shown: Sequence[Bar]) -> tuple[str, list[str]]:
    """What all bars have in common, and of each its precision, rank, and what else tells it apart."""
    facts = [_facts(bar.config) for bar in shown]
    varying = [name for name in facts[0] if len({own[name] for own in facts}) > 1]
    shared = [text for name, text in facts[0].items() if name not in varying]
    labels = []
    for bar, own in zip(shown, facts, strict=True):
        text = ", ".join([BITS[bar.config.precision], f"rank {bar.config.rank}", *map(own.get, varying)])
        labels.append(f"{STAR} {text}" if bar.members else text)
    return f"All: {', '.join(shared)}.", labels


def _widths(shown: Sequence[Bar]) -> NDArray[np.float64]:
    """(n_parts, n_bars), MiB."""
    return np.array(list(map(attrgetter("parts_mib"), shown))).T


def _png(shown: Sequence[Bar], labels: Sequence[str]) -> PngFigure:
    figure = canvas(1.5 + 0.3 * len(shown))
    axes = figure.subplots()
    rows, left = range(len(shown)), np.zeros(len(shown))
    for name, colour, widths in zip(PARTS.values(), OTHER_COLOURS, _widths(shown), strict=True):
        axes.barh(rows, widths, left=left, color=colour, label=name, height=0.72)
        left = left + widths
    form = ",.0f" if max(left) >= 1000 else ".1f"
    for row, total in zip(rows, left, strict=True):
        axes.text(total, row, f" {total:{form}}", va="center", fontsize=8)
    axes.set_xlim(0, 1.08 * max(left))
    axes.set_yticks(rows, labels, fontsize=8)
    for tick, bar in zip(axes.get_yticklabels(), shown, strict=True):
        tick.set_color(PRECISION_COLOURS[bar.config.precision])
    axes.invert_yaxis()
    axes.set_xlabel(X_AXIS)
    axes.spines[["top", "right"]].set_visible(False)
    legend(figure, 7, fontsize=8, columnspacing=1.2, handlelength=1.2)
    return figure


def _html(shown: Sequence[Bar], labels: Sequence[str]) -> "go.Figure":
    import plotly.graph_objects as go

    figure = go.Figure()
    rows = list(range(len(shown)))
    for name, colour, widths in zip(PARTS.values(), OTHER_COLOURS, _widths(shown), strict=True):
        text = []
        for label, width, bar in zip(labels, widths, shown, strict=True):
            on_front = f"<br>front: trial {', '.join(map(str, bar.members))}" if bar.members else ""
            text.append(f"{label}<br>{name} {width:,.2f} MiB<br>peak {bar.total_mib:,.2f} MiB{on_front}")
        figure.add_bar(
            x=widths.tolist(),
            y=rows,
            orientation="h",
            name=name,
            marker_color=colour,
            hovertext=text,
            hoverinfo="text",
        )
    coloured = []
    for bar, label in zip(shown, labels, strict=True):
        coloured.append(f'<span style="color:{PRECISION_COLOURS[bar.config.precision]}">{label}</span>')
    figure.update_layout(barmode="stack", legend_traceorder="normal", height=180 + 30 * len(shown))
    figure.update_yaxes(tickvals=rows, ticktext=coloured, autorange="reversed")
    figure.update_xaxes(title=X_AXIS)
    return figure
