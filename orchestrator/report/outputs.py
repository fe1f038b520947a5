"""What a sweep leaves in its folder beside the ledger: front.json, trials.parquet, figures, report."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.figures import gallery
from orchestrator.figures.style import LeftOut, Picture
from orchestrator.report import page as report_page
from orchestrator.report import render
from orchestrator.report.rows import trial_rows
from orchestrator.report.values import SweepReport
from trainables.values.files import write_whole

PICTURES = {f"{gallery.FOLDER}/{name}.png": title for name, (title, _) in gallery.IN_REPORT.items()}
"""Of the report: path in the sweep's folder -> title."""


def write(snapshot: SweepSnapshot, report: SweepReport, folder: Path) -> list[Path]:
    """Write everything; returns the files."""
    found = gallery.of_sweep(snapshot)
    drawn = gallery.write(snapshot, found, folder)
    return [*write_data(snapshot, folder), *drawn, *write_report(snapshot, report, found, folder)]


def write_data(snapshot: SweepSnapshot, folder: Path) -> list[Path]:
    """Write what programs read, front.json and trials.parquet; returns the files."""
    front = write_whole(folder / "front.json", json.dumps(snapshot.front.to_dict(), indent=2) + "\n")
    rows, names = trial_rows(snapshot), {}
    for row in rows:
        names |= row
    columns = {name: [row.get(name) for row in rows] for name in names}
    table = folder / "trials.parquet"
    pq.write_table(pa.table(columns), table.with_suffix(".tmp"))
    table.with_suffix(".tmp").replace(table)
    return [front, table]


def draw(snapshot: SweepSnapshot, found: Sequence[Picture | LeftOut], folder: Path) -> list[Path]:
    """Draw the pictures that report.md shows; returns the files."""
    return gallery.write_png(snapshot, [figure for figure in found if figure.name in gallery.IN_REPORT], folder)


def write_report(
    snapshot: SweepSnapshot, report: SweepReport, found: Sequence[Picture | LeftOut], folder: Path
) -> list[Path]:
    """Write report.md with the pictures that lie in the folder, and report.html; returns the files."""
    drawn = {path: title for path, title in PICTURES.items() if (folder / path).is_file()}
    texts = render.sections(report, drawn)
    page = report_page.of_report(snapshot, texts, found, folder)
    return [
        write_whole(folder / "report.md", render.joined(texts)),
        write_whole(folder / "report.html", page),
    ]
