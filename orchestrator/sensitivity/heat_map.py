"""The heat map of a sensitivity run, as PNG and as self-contained interactive HTML."""

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as PngFigure

from orchestrator.sensitivity.run import SensitivityResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from trainables.comparison.sensitivity import Sensitivity

TITLE = "Where quantization shows"
UNIT = "KL to the unquantized model, nats per response token"
SMALLEST_NATS = 1e-12
"""A logarithm's stand-in for a KL of nothing."""


def write(result: SensitivityResult, folder: Path) -> list[Path]:
    """Draw the heat map; returns the files."""
    files = [folder / "sensitivity.png", folder / "sensitivity.html"]
    heat_map_png(result).savefig(files[0], dpi=130)
    heat_map_html(result).write_html(files[1], include_plotlyjs=True, full_html=True)
    return files


def grid(result: SensitivityResult) -> "list[list[Sensitivity]]":
    """A row a block and a column a module kind; the last column is the whole block, the last row all blocks."""
    lines = [
        [*(result.of("module", block, kind) for kind in result.kinds), result.of("block", block)]
        for block in result.blocks
    ]
    return [*lines, [*(result.of("kind", kind=kind) for kind in result.kinds), result.of("all")]]


def _kl(result: SensitivityResult) -> list[list[float]]:
    return [[max(s.kl_nats, SMALLEST_NATS) for s in line] for line in grid(result)]


def _labels(result: SensitivityResult) -> tuple[list[str], list[str]]:
    return [*result.kinds, "whole block"], [*(f"block {block}" for block in result.blocks), "all blocks"]


def heat_map_png(result: SensitivityResult) -> PngFigure:
    """KL of each module, each block and each kind quantized alone, colours on a logarithmic scale."""
    values = _kl(result)
    columns, lines = _labels(result)
    figure = PngFigure(figsize=(8.4, 2.4 + 0.27 * len(lines)), layout="constrained")
    axes = figure.subplots()
    flat = [value for line in values for value in line]
    norm = LogNorm(min(flat), max(flat))
    image = axes.imshow(values, norm=norm, cmap="magma_r", aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
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
    figure.get_layout_engine().set(rect=(0, 0.05, 1, 0.95))  # type: ignore[union-attr]
    figure.text(0.01, 0.01, result.caption, fontsize=7, color="#555555")
    return figure


def _hover(s: "Sensitivity") -> str:
    lines = [s.variant.label, f"{s.n_parameters:,} weights at 4 bits", f"loss {s.loss_nats:+.5f} nats"]
    return "<br>".join([*lines, f"KL {s.kl_nats:.3e} nats", f"cosine {s.cosine:.6f}"])


def heat_map_html(result: SensitivityResult) -> "go.Figure":
    """Interactive form of `heat_map_png`."""
    import numpy as np
    import plotly.graph_objects as go

    columns, lines = _labels(result)
    logarithms = np.log10(_kl(result))
    ticks = list(range(int(np.floor(logarithms.min())), int(np.ceil(logarithms.max())) + 1))
    heat_map = go.Heatmap(
        x=columns,
        y=lines,
        z=logarithms.tolist(),
        text=[[_hover(s) for s in line] for line in grid(result)],
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
        title={"text": TITLE, "subtitle": {"text": f"{UNIT}<br>{result.caption}"}},
        template="plotly_white",
        height=260 + 22 * len(lines),
        margin={"t": 130},
    )
    return figure
