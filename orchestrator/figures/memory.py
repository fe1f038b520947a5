"""What the bytes of a training step are: a stacked bar for each measured cost key."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from matplotlib.figure import Figure as PngFigure

from orchestrator.analysis.costs import measured_cells
from orchestrator.analysis.describe import targets
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.figures.style import (
    OTHER_COLOURS,
    PRECISION_COLOURS,
    LeftOut,
    Picture,
    canvas,
)
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
    def total_mib(self) -> float:
        return sum(getattr(self.breakdown, part) for part in PARTS)


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
    notes.append(_shared(shown))
    labels = _labels(shown)
    return Picture(
        name=NAME,
        title=TITLE,
        notes=tuple(note for note in notes if note),
        png=partial(_png, shown, labels),
        html=partial(_html, shown, labels),
    )


def _facts(config: TrialConfig) -> dict[str, str]:
    return {
        "targets": targets(config),
        "shape": f"{config.batch_size} x {config.max_length_tokens} tokens",
        "dropout": f"dropout {'on' if config.dropout else 'off'}",
        "loop": f"{config.loop} loop",
        "engine": f"{config.engine} engine",
    }


def _varying(shown: Sequence[Bar]) -> list[str]:
    return [name for name in _facts(shown[0].config) if len({_facts(bar.config)[name] for bar in shown}) > 1]


def _shared(shown: Sequence[Bar]) -> str:
    """What all bars have in common."""
    varying = _varying(shown)
    return "All: " + ", ".join(text for name, text in _facts(shown[0].config).items() if name not in varying) + "."


def _labels(shown: Sequence[Bar]) -> list[str]:
    """Precision, rank, and what else tells the bars apart."""
    varying = _varying(shown)
    texts = []
    for bar in shown:
        facts = _facts(bar.config)
        text = ", ".join([BITS[bar.config.precision], f"rank {bar.config.rank}", *(facts[name] for name in varying)])
        texts.append(f"{STAR} {text}" if bar.members else text)
    return texts


def _png(shown: Sequence[Bar], labels: Sequence[str]) -> PngFigure:
    figure = canvas(1.5 + 0.3 * len(shown))
    axes = figure.subplots()
    rows, left = range(len(shown)), [0.0] * len(shown)
    for (part, name), colour in zip(PARTS.items(), OTHER_COLOURS, strict=True):
        widths = [getattr(bar.breakdown, part) for bar in shown]
        axes.barh(rows, widths, left=left, color=colour, label=name, height=0.72)
        left = [a + b for a, b in zip(left, widths, strict=True)]
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
    figure.legend(loc="outside lower left", ncols=7, frameon=False, fontsize=8, columnspacing=1.2, handlelength=1.2)
    return figure


def _html(shown: Sequence[Bar], labels: Sequence[str]) -> "go.Figure":
    import plotly.graph_objects as go

    figure = go.Figure()
    rows = list(range(len(shown)))
    for (part, name), colour in zip(PARTS.items(), OTHER_COLOURS, strict=True):
        widths = [getattr(bar.breakdown, part) for bar in shown]
        text = [
            f"{label}<br>{name} {width:,.2f} MiB<br>peak {bar.total_mib:,.2f} MiB"
            + (f"<br>front: trial {', '.join(map(str, bar.members))}" if bar.members else "")
            for label, width, bar in zip(labels, widths, shown, strict=True)
        ]
        figure.add_trace(
            go.Bar(
                x=widths,
                y=rows,
                orientation="h",
                name=name,
                marker_color=colour,
                hovertext=text,
                hoverinfo="text",
            )
        )
    coloured = [
        f'<span style="color:{PRECISION_COLOURS[bar.config.precision]}">{label}</span>'
        for bar, label in zip(shown, labels, strict=True)
    ]
    figure.update_layout(barmode="stack", legend_traceorder="normal", height=180 + 30 * len(shown))
    figure.update_yaxes(tickvals=rows, ticktext=coloured, autorange="reversed")
    figure.update_xaxes(title=X_AXIS)
    return figure
