"""The pictures of a sweep: each as PNG, and all on one interactive page that needs nothing else."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator import (
    figure_hypervolume,
    figure_importance,
    figure_memory,
    figure_page,
    figure_parallel,
    figure_scatter,
    figure_similarity,
)
from orchestrator.figure_style import DOTS_PER_INCH, Draw, Figure, LeftOut, finished_png
from orchestrator.sweep import SweepResult

FOLDER, LEFT_OUT, PAGE = "figures", "left_out.txt", "figures.html"
"""In a sweep's folder: the pictures; in there, which have nothing to show and why; the interactive page."""
FRONT, FRONT_OF = "front", "loss_memory"
"""A smaller form of one picture, for MLflow's description of a run, which cuts off what is wider than its column."""
FRONT_DOTS_PER_INCH = 88
IN_REPORT: Mapping[str, tuple[str, Draw]] = {
    "rank_memory": (figure_scatter.RANK_TITLE, figure_scatter.rank_memory),
    "loss_memory": (figure_scatter.LOSS_TITLE, figure_scatter.loss_memory),
    figure_memory.NAME: (figure_memory.TITLE, figure_memory.draw),
    figure_similarity.NAME: (figure_similarity.TITLE, figure_similarity.draw),
    figure_hypervolume.NAME: (figure_hypervolume.TITLE, figure_hypervolume.draw),
}
"""Name -> title, and how it is drawn."""


def of_report(result: SweepResult) -> list[Figure | LeftOut]:
    """Those that the report shows."""
    return [draw(result) for _, draw in IN_REPORT.values()]


def of_sweep(result: SweepResult) -> list[Figure | LeftOut]:
    """All of them."""
    pairs = figure_scatter.pairs(result)
    return [*of_report(result), *pairs, figure_parallel.draw(result), figure_importance.draw(result)]


def write(result: SweepResult, folder: Path) -> list[Path]:
    """Draw all in both forms into a sweep's folder; returns the files."""
    found = of_sweep(result)
    files = [*write_png(result, found, folder), *write_front(result, found, folder), write_page(result, found, folder)]
    reasons = [f"{figure.name}: {figure.reason}\n" for figure in found if isinstance(figure, LeftOut)]
    path = folder / FOLDER / LEFT_OUT
    path.unlink(missing_ok=True)
    if reasons:
        path.write_text("".join(reasons), encoding="utf-8")
        files.append(path)
    return files


def write_live(result: SweepResult, folder: Path) -> list[Path]:
    """Draw what is kept up to date while a sweep runs, the page and the front's picture; returns the files.

    The other pictures take several times as long to draw as the page, which has them all.
    """
    found = of_sweep(result)
    return [*write_front(result, found, folder), write_page(result, found, folder)]


def write_page(result: SweepResult, found: Sequence[Figure | LeftOut], folder: Path) -> Path:
    """Write the interactive page, whole or not at all."""
    path = folder / PAGE
    scratch = path.with_suffix(".tmp")
    scratch.write_text(figure_page.page(found, f"Sweep {result.settings.name}", result.caption), encoding="utf-8")
    os.replace(scratch, path)
    return path


def write_png(result: SweepResult, found: Sequence[Figure | LeftOut], folder: Path) -> list[Path]:
    """Write the PNG forms; returns the files."""
    paths = {folder / FOLDER / f"{figure.name}.png": figure for figure in found}
    return [path for path, figure in paths.items() if _drawn(result, figure, path, DOTS_PER_INCH)]


def write_front(result: SweepResult, found: Sequence[Figure | LeftOut], folder: Path) -> list[Path]:
    """Write the smaller picture of the front; returns its file."""
    path = folder / FOLDER / f"{FRONT}.png"
    (figure,) = [figure for figure in found if figure.name == FRONT_OF]
    return [path] if _drawn(result, figure, path, FRONT_DOTS_PER_INCH) else []


def _drawn(result: SweepResult, figure: Figure | LeftOut, path: Path, dots_per_inch: int) -> bool:
    """Draw a picture, or take away the older one of what is left out now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(figure, LeftOut):
        path.unlink(missing_ok=True)
        return False
    finished_png(figure, result.caption).savefig(path, dpi=dots_per_inch)
    return True
