"""The heat map of a sensitivity run, as PNG and as self-contained interactive HTML."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import matplotlib
import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

matplotlib.use("Agg")
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as PngFigure

if TYPE_CHECKING:
    from trainables.comparison.sensitivity import BaseSensitivity, Sensitivity

T = TypeVar("T")

TITLE = "Where quantization shows"
UNIT = "KL to the unquantized model, nats per response token"
SMALLEST_NATS = 1e-12
"""A logarithm's stand-in for a KL of nothing."""


def write(base: "BaseSensitivity", folder: Path) -> list[Path]:
    """Draw the heat map; returns the files."""
    files = [folder / "sensitivity.png", folder / "sensitivity.html"]
    heat_map_png(base).savefig(files[0], dpi=130)
    heat_map_html(base).write_html(files[1], include_plotlyjs=True, full_html=True)
    return files


def grid(base: "BaseSensitivity") -> "list[list[Sensitivity]]":
    """A row a block and a column a module kind; the last column is the whole block, the last row all blocks."""
    lines = []
    for block in base.blocks:
        lines.append([*(base.of("module", block, kind) for kind in base.kinds), base.of("block", block)])
    lines.append([*(base.of("kind", kind=kind) for kind in base.kinds), base.of("all")])
    return lines


def _kl(base: "BaseSensitivity") -> NDArray[np.float64]:
    """(n_blocks + 1, n_kinds + 1), as `grid` has them."""
    return np.maximum(_each(base, lambda s: s.kl_nats), SMALLEST_NATS)


def _each(base: "BaseSensitivity", figure: "Callable[[Sensitivity], T]") -> list[list[T]]:
    """A figure of each variant in its place of the grid."""
    return [[figure(s) for s in line] for line in grid(base)]


def _labels(base: "BaseSensitivity") -> tuple[list[str], list[str]]:
    return [*base.kinds, "whole block"], [*(f"block {block}" for block in base.blocks), "all blocks"]


def heat_map_png(base: "BaseSensitivity") -> PngFigure:
    """KL of each module, each block and each kind quantized alone, colours on a logarithmic scale."""
    values = _kl(base)
    columns, lines = _labels(base)
    figure = PngFigure(figsize=(8.4, 2.4 + 0.27 * len(lines)), layout="constrained")
    axes = figure.subplots()
    norm = LogNorm(values.min(), values.max())
    image = axes.imshow(values, norm=norm, cmap="magma_r", aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        ink = "white" if norm(value) > 0.42 else "black"
        axes.text(x, y, f"{value:.1e}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(lines)), lines, fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.axvline(len(columns) - 1.5, color="white", linewidth=5)  # sums stand apart
    axes.axhline(len(lines) - 1.5, color="white", linewidth=5)
    figure.colorbar(image, label="KL (nats)")
    figure.suptitle(f"{TITLE}: each part at NF4 alone, without training\n{UNIT}")
    figure.get_layout_engine().set(rect=(0, 0.05, 1, 0.95))  # type: ignore[union-attr, call-arg]
    figure.text(0.01, 0.01, base.caption, fontsize=7, color="#555555")
    return figure


def _hover(s: "Sensitivity") -> str:
    lines = [s.variant.label, f"{s.n_parameters:,} weights at 4 bits", f"loss {s.loss_nats:+.5f} nats"]
    return "<br>".join([*lines, f"KL {s.kl_nats:.3e} nats", f"cosine {s.cosine:.6f}"])


def heat_map_html(base: "BaseSensitivity") -> go.Figure:
    """Interactive form of `heat_map_png`."""
    columns, lines = _labels(base)
    logarithms = np.log10(_kl(base))
    ticks = list(range(int(np.floor(logarithms.min())), int(np.ceil(logarithms.max())) + 1))
    heat_map = go.Heatmap(
        x=columns,
        y=lines,
        z=logarithms.tolist(),
        text=_each(base, _hover),
        hoverinfo="text",
        colorscale="magma_r",
        xgap=1,
        ygap=1,
        colorbar={"title": "KL (nats)", "tickvals": ticks, "ticktext": [f"1e{t}" for t in ticks]},
    )
    figure = go.Figure(heat_map)
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(side="top")
    figure.update_layout(
        title={"text": TITLE, "subtitle": {"text": f"{UNIT}<br>{base.caption}"}},
        template="plotly_white",
        height=260 + 22 * len(lines),
        margin={"t": 130},
    )
    return figure
