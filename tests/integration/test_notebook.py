"""The notebook for a single T4, executed from its clone to its figures on the demo: the sweep runs in the kernel."""

import shutil
import subprocess
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.support.sweeps import REPO, environment

NOTEBOOK = REPO / "orchestrator" / "notebooks" / "one_t4.ipynb"
NEEDED = ("Makefile", "pyproject.toml", "constraints.txt", "orchestrator", "search_spaces", "trainables")


def git(*arguments: str, cwd: Path) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    subprocess.run(["git", *identity, *arguments], cwd=cwd, check=True, capture_output=True)


def repository(folder: Path) -> Path:
    """This checkout as it stands, in a repository that can be cloned."""
    folder.mkdir()
    for name in NEEDED:
        source = REPO / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    git("init", "--quiet", cwd=folder)
    git("add", "--all", cwd=folder)
    git("commit", "--quiet", "--message", "all", cwd=folder)
    return folder


def test_the_notebook_clones_sweeps_and_shows_the_answer_and_every_figure(tmp_path):
    variables = {
        "REPOSITORY": str(repository(tmp_path / "source")),
        "PYTHONPATH": str(tmp_path / "qlora-sweep"),
    }
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    for cell in notebook.cells:
        cell.source = cell.source.replace("trials=8", "trials=1, steps=2")
    client = NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment(**variables))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    shown = [output.data for output in outputs if output.output_type == "display_data"]
    tables = [data["text/html"] for data in shown if "text/html" in data]
    assert "No GPU here: this is the demo" in said
    assert ": the lowest validation loss of the trials that count" in said  # one trial has no noise yet
    live, asked_for = tables
    assert live == asked_for, "the live table shows the sweep's end"
    assert "Pareto front: " in live
    assert any("Which rank for which memory" in data.get("text/markdown", "") for data in shown)
    drawn = sorted((tmp_path / "mlflow_runs" / "sweeps" / "t4" / "figures").glob("*.png"))
    assert len(drawn) >= 5  # none of time, which is no objective on a CPU
    assert sum("image/png" in data for data in shown) == len(drawn)
