"""What a sweep leaves in its folder beside the ledger: front.json, trials.parquet, figures, report."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.figures import gallery
from orchestrator.report import page as report_page
from orchestrator.report import render
from orchestrator.report.rows import trial_rows
from orchestrator.report.values import SweepReport
from trainables.values.files import write_whole

PICTURES = {f"{gallery.FOLDER}/{name}.png": title for name, (title, _) in gallery.IN_REPORT.items()}
"""Of the report: path in the sweep's folder -> title."""


def write(snapshot: SweepSnapshot, report: SweepReport, folder: Path) -> list[Path]:
    """Write everything; returns the files."""
    return [*write_data(snapshot, folder), *gallery.write(snapshot, folder), *write_report(report, folder)]


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


def draw(snapshot: SweepSnapshot, folder: Path) -> list[Path]:
    """Draw the report's pictures; returns the files."""
    return gallery.write_png(snapshot, gallery.of_report(snapshot), folder)


def write_report(report: SweepReport, folder: Path) -> list[Path]:
    """Write report.md and report.html with the pictures that lie in the folder; returns the files."""
    drawn = {path: title for path, title in PICTURES.items() if (folder / path).is_file()}
    text = render.markdown(report, drawn)
    page = report_page.page(text, f"Sweep {report.name}", folder)
    return [write_whole(folder / "report.md", text), write_whole(folder / "report.html", page)]
