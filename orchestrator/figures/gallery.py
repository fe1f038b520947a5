"""The pictures of a sweep: each as PNG, and all on one interactive page that needs nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure as PngFigure

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.figures import hypervolume, importance, memory, parallel, scatter, similarity, timeline
from orchestrator.figures import page as pages
from orchestrator.figures.style import DOTS_PER_INCH, LeftOut, Picture, Plotter, finished_png
from trainables.values.files import write_whole

FOLDER, LEFT_OUT, PAGE = "figures", "left_out.txt", "figures.html"
"""In a sweep's folder: the pictures; in there, which have nothing to show and why; the interactive page."""
FRONT, FRONT_OF = "front.png", "loss_memory"
"""A smaller form of one picture, for MLflow's description of a run, which cuts off what is wider than its column."""
FRONT_FILE = f"{FOLDER}/{FRONT}"
FRONT_DOTS_PER_INCH = 88
IN_REPORT: Mapping[str, tuple[str, Plotter]] = {
    "rank_memory": (scatter.RANK_TITLE, scatter.rank_memory),
    "loss_memory": (scatter.LOSS_TITLE, scatter.loss_memory),
    memory.NAME: (memory.TITLE, memory.draw),
    similarity.NAME: (similarity.TITLE, similarity.draw),
    hypervolume.NAME: (hypervolume.TITLE, hypervolume.draw),
}
"""Those that report.md shows too: name -> title, and how it is drawn."""


def of_sweep(snapshot: SweepSnapshot) -> list[Picture | LeftOut]:
    """All of them."""
    first = [draw(snapshot) for _, draw in IN_REPORT.values()]
    pairs = scatter.pairs(snapshot)
    return [*first, *pairs, parallel.draw(snapshot), importance.draw(snapshot), timeline.draw(snapshot)]


def write(snapshot: SweepSnapshot, found: Sequence[Picture | LeftOut], folder: Path) -> list[Path]:
    """Draw all of a sweep's figures in both forms into its folder; returns the files."""
    files = write_png(snapshot, found, folder)
    path, drawn = folder / FOLDER / FRONT, front(snapshot, found)
    path.unlink(missing_ok=True)
    if drawn:
        drawn.savefig(path, dpi=FRONT_DOTS_PER_INCH)
        files.append(path)
    files.append(write_whole(folder / PAGE, page(snapshot, found)))
    reasons = "".join(f"{figure.name}: {figure.reason}\n" for figure in found if isinstance(figure, LeftOut))
    path = folder / FOLDER / LEFT_OUT
    path.unlink(missing_ok=True)
    if reasons:
        path.write_text(reasons, encoding="utf-8")
        files.append(path)
    return files


def page(snapshot: SweepSnapshot, found: Sequence[Picture | LeftOut]) -> str:
    """The interactive page."""
    return pages.page(found, f"Sweep {snapshot.settings.name}", snapshot.caption)


def front(snapshot: SweepSnapshot, found: Sequence[Picture | LeftOut]) -> PngFigure | None:
    """The picture of the front; None where it has nothing to show yet."""
    figure = next(figure for figure in found if figure.name == FRONT_OF)
    return finished_png(figure, snapshot.caption) if isinstance(figure, Picture) else None


def write_png(snapshot: SweepSnapshot, found: Sequence[Picture | LeftOut], folder: Path) -> list[Path]:
    """Write the PNG forms, and take away an older picture of what is left out now; returns the files."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    files = []
    for figure in found:
        path = folder / FOLDER / f"{figure.name}.png"
        if isinstance(figure, LeftOut):
            path.unlink(missing_ok=True)
        else:
            finished_png(figure, snapshot.caption).savefig(path, dpi=DOTS_PER_INCH)
            files.append(path)
    return files
