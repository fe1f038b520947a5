"""The notebook for a single T4, executed from its clone to its figures on the demo."""

import os
import shutil
import subprocess
import sys
import time
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


def installed(folder: Path) -> Path:
    """What `make` takes for a finished .venv: this Python, and a mark younger than anything it depends on."""
    folder.mkdir()
    (folder / "bin").symlink_to(Path(sys.executable).parent)
    tomorrow = time.time() + 86400
    for mark in ("installed", "installed-test"):
        (folder / mark).touch()
        os.utime(folder / mark, (tomorrow, tomorrow))
    return folder


def test_the_notebook_clones_sweeps_and_shows_the_answer_and_every_figure(tmp_path):
    variables = {
        "REPOSITORY": str(repository(tmp_path / "source")),
        "MAKEFLAGS": f"VENV={installed(tmp_path / 'venv')}",
        "PYTHONPATH": str(tmp_path / "qlora-sweep"),
        "TRIALS": "1",
        "STEPS": "2",
    }
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    client = NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment(**variables))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    shown = [output.data for output in outputs if output.output_type == "display_data"]
    assert "Pareto front" in said
    assert "No GPU here: this is the demo" in said
    assert any("Which rank for which memory" in data.get("text/markdown", "") for data in shown)
    drawn = sorted((tmp_path / "qlora-sweep" / "mlflow_runs" / "sweeps" / "t4" / "figures").glob("*.png"))
    assert len(drawn) >= 5  # none of time, which is no objective on a CPU
    assert sum("image/png" in data for data in shown) == len(drawn)
