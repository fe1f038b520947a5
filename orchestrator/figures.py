"""The pictures of a sweep, each as PNG and as interactive HTML that needs nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator import (
    figure_hypervolume,
    figure_importance,
    figure_memory,
    figure_parallel,
    figure_scatter,
    figure_similarity,
)
from orchestrator.figure_style import DOTS_PER_INCH, Draw, Figure, LeftOut, finished_html, finished_png
from orchestrator.sweep import SweepResult

LEFT_OUT = "left_out.txt"
"""Beside the pictures: which have nothing to show, and why."""
IN_REPORT: Mapping[str, tuple[str, Draw]] = {
    "rank_memory": (figure_scatter.RANK_TITLE, figure_scatter.rank_memory),
    "loss_memory": (figure_scatter.LOSS_TITLE, figure_scatter.loss_memory),
    figure_memory.NAME: (figure_memory.TITLE, figure_memory.draw),
    figure_similarity.NAME: (figure_similarity.TITLE, figure_similarity.draw),
    figure_hypervolume.NAME: (figure_hypervolume.TITLE, figure_hypervolume.draw),
}
"""Name -> title, and how it is drawn."""
PAGE = {"displaylogo": False, "responsive": True}


def of_report(result: SweepResult) -> list[Figure | LeftOut]:
    """Those that the report shows."""
    return [draw(result) for _, draw in IN_REPORT.values()]


def of_sweep(result: SweepResult) -> list[Figure | LeftOut]:
    """All of them."""
    pairs = figure_scatter.pairs(result)
    return [*of_report(result), *pairs, figure_parallel.draw(result), figure_importance.draw(result)]


def write(result: SweepResult, folder: Path) -> list[Path]:
    """Draw all in both forms; returns the files."""
    found = of_sweep(result)
    files = write_png(result, found, folder)
    for figure in found:
        path = folder / f"{figure.name}.html"
        if isinstance(figure, LeftOut):
            path.unlink(missing_ok=True)
            continue
        page = finished_html(figure, result.caption)
        page.write_html(path, include_plotlyjs=True, full_html=True, config=PAGE, default_width="100%")
        files.append(path)
    reasons = [f"{figure.name}: {figure.reason}\n" for figure in found if isinstance(figure, LeftOut)]
    path = folder / LEFT_OUT
    path.unlink(missing_ok=True)
    if reasons:
        path.write_text("".join(reasons), encoding="utf-8")
        files.append(path)
    return files


def write_png(result: SweepResult, found: Sequence[Figure | LeftOut], folder: Path) -> list[Path]:
    """Write the PNG forms, and take away an older picture of what is left out now; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for figure in found:
        path = folder / f"{figure.name}.png"
        if isinstance(figure, LeftOut):
            path.unlink(missing_ok=True)
        else:
            finished_png(figure, result.caption).savefig(path, dpi=DOTS_PER_INCH)
            files.append(path)
    return files
