"""The pictures of a sweep, each as PNG and as self-contained interactive HTML."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure as PngFigure

from orchestrator.sweep import SweepResult
from trainables.results import TrialResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLOURS = {"nf4": "#d55e00", "16bit": "#0072b2"}  # Okabe-Ito: told apart by all eyes
LABELS = {"nf4": "NF4 (4 bits)", "16bit": "16 bits"}
SIDE_STEP = 2**0.06
"""Points of the two precisions are moved apart by this factor of the rank, so that neither hides the other."""


def write(result: SweepResult, folder: Path) -> list[Path]:
    """Draw both pictures; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for name, png, html in (
        ("rank_memory", rank_memory_png, rank_memory_html),
        ("loss_memory", loss_memory_png, loss_memory_html),
    ):
        files += [folder / f"{name}.png", folder / f"{name}.html"]
        png(result).savefig(files[-2], dpi=130)
        html(result).write_html(files[-1], include_plotlyjs=True, full_html=True)
    return files


def _measured(result: SweepResult, precision: str) -> list[TrialResult]:
    """Completed trials at one precision."""
    return [t for t in result.trials if t.state == "completed" and t.config.precision == precision and t.history]


def _rank_x(trials: Iterable[TrialResult]) -> list[float]:
    return [t.config.rank * (SIDE_STEP if t.config.precision == "nf4" else 1 / SIDE_STEP) for t in trials]


def _memory(trial: TrialResult) -> float:
    return trial.history[-1].peak_memory_mib


def _loss(trial: TrialResult) -> float:
    return trial.history[-1].eval_loss_nats


def _above_cheapest(trials: list[TrialResult]) -> Callable[[TrialResult], float]:
    floor = min((_memory(t) for t in trials), default=0.0)
    return lambda trial: _memory(trial) - floor


# --- PNG (matplotlib)


def _scatter_png(axes: Any, result: SweepResult, precision: str, xs: list[float], ys: list[float]) -> None:
    trials = _measured(result, precision)
    axes.scatter(xs, ys, s=34, color=COLOURS[precision], label=LABELS[precision], alpha=0.75)
    ring = [i for i, t in enumerate(trials) if t.key in result.front.keys]
    axes.scatter([xs[i] for i in ring], [ys[i] for i in ring], s=120, facecolors="none", edgecolors="black")


def _finish_png(figure: PngFigure, axes: Any, result: SweepResult, title: str) -> PngFigure:
    axes.scatter([], [], s=120, facecolors="none", edgecolors="black", label="on the Pareto front")
    axes.legend(frameon=False)
    figure.suptitle(title)
    figure.text(0.01, 0.01, result.caption, fontsize=7, color="#555555")
    return figure


def _rank_axis_png(axes: Any, result: SweepResult) -> None:
    ranks = sorted({t.config.rank for t in result.trials})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.minorticks_off()
    axes.set_xlabel("LoRA rank")
    axes.grid(alpha=0.25)


def rank_memory_png(result: SweepResult) -> PngFigure:
    """Rank against peak memory, absolute and above each precision's cheapest trial."""
    figure = PngFigure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for precision in COLOURS:
        trials = _measured(result, precision)
        above = _above_cheapest(trials)
        _scatter_png(left, result, precision, _rank_x(trials), [_memory(t) for t in trials])
        _scatter_png(right, result, precision, _rank_x(trials), [above(t) for t in trials])
    for axes in (left, right):
        _rank_axis_png(axes, result)
    left.set_ylabel("peak memory (MiB)")
    right.set_ylabel("MiB above the precision's cheapest trial")
    figure.get_layout_engine().set(rect=(0, 0.04, 1, 0.96))  # type: ignore[union-attr]
    return _finish_png(figure, left, result, "What a rank costs in memory")


def loss_memory_png(result: SweepResult) -> PngFigure:
    """Held-out loss against peak memory."""
    figure = PngFigure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    for precision in COLOURS:
        trials = _measured(result, precision)
        _scatter_png(axes, result, precision, [_memory(t) for t in trials], [_loss(t) for t in trials])
    axes.set_xlabel("peak memory (MiB)")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.grid(alpha=0.25)
    figure.get_layout_engine().set(rect=(0, 0.04, 1, 0.96))  # type: ignore[union-attr]
    return _finish_png(figure, axes, result, "What memory buys")


# --- HTML (plotly)


def _hover(trial: TrialResult) -> str:
    c, last = trial.config, trial.history[-1]
    lines = [
        f"trial {trial.number} ({trial.origin}), {trial.key[:12]}",
        f"{c.precision}, rank {c.rank}, alpha {c.alpha:g}, dropout {c.dropout:g}, lr {c.learning_rate:.2e}",
        "+".join(c.targets),
        f"loss {last.eval_loss_nats:.4f} nats, {last.peak_memory_mib:.1f} MiB",
        f"{last.seconds_per_step * 1e3:.1f} ms/step",
    ]
    if trial.similarity:
        cosine = trial.similarity.quantized.embedding_cosine
        lines.append(f"cosine to the 16-bit twin {cosine.value:.4f} ({cosine.low:.4f} to {cosine.high:.4f})")
    return "<br>".join(lines)


def _trace(
    result: SweepResult, precision: str, xs: list[float], ys: list[float], *, legend: bool = True
) -> "go.Scatter":
    import plotly.graph_objects as go

    trials = _measured(result, precision)
    on_front = [t.key in result.front.keys for t in trials]
    return go.Scatter(
        x=xs,
        y=ys,
        mode="markers",
        name=LABELS[precision],
        legendgroup=precision,
        showlegend=legend,
        text=[_hover(t) for t in trials],
        hoverinfo="text",
        marker={
            "color": COLOURS[precision],
            "size": [13 if on else 9 for on in on_front],
            "opacity": 0.8,
            "line": {"color": "black", "width": [2.5 if on else 0 for on in on_front]},
        },
    )


def _finish_html(figure: "go.Figure", result: SweepResult, title: str) -> "go.Figure":
    note = f"{result.caption}<br>Black rings: on the Pareto front over {', '.join(result.settings.objectives)}"
    figure.update_layout(
        title={"text": title, "subtitle": {"text": note}}, template="plotly_white", height=560, margin={"t": 130}
    )
    return figure


def rank_memory_html(result: SweepResult) -> "go.Figure":
    """Interactive form of `rank_memory_png`."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.16)
    for precision in COLOURS:
        trials = _measured(result, precision)
        above = _above_cheapest(trials)
        xs = _rank_x(trials)
        figure.add_trace(_trace(result, precision, xs, [_memory(t) for t in trials]), row=1, col=1)
        figure.add_trace(_trace(result, precision, xs, [above(t) for t in trials], legend=False), row=1, col=2)
    ranks = sorted({t.config.rank for t in result.trials})
    figure.update_xaxes(type="log", tickvals=ranks, ticktext=[str(r) for r in ranks], title="LoRA rank")
    figure.update_yaxes(title="peak memory (MiB)", row=1, col=1)
    figure.update_yaxes(title="MiB above the precision's cheapest trial", row=1, col=2)
    return _finish_html(figure, result, "What a rank costs in memory")


def loss_memory_html(result: SweepResult) -> "go.Figure":
    """Interactive form of `loss_memory_png`."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for precision in COLOURS:
        trials = _measured(result, precision)
        figure.add_trace(_trace(result, precision, [_memory(t) for t in trials], [_loss(t) for t in trials]))
    figure.update_xaxes(title="peak memory (MiB)")
    figure.update_yaxes(title="held-out loss (nats per token)")
    return _finish_html(figure, result, "What memory buys")
