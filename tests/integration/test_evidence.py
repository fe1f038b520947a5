"""`make card-evidence` for a base and rows on the hub, here a tiny GPT-2 on the loopback: to the card, and again."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.analysis.snapshot import SweepSnapshot
from tests.support.hub_server import hub_server
from tests.support.sweeps import Finished, command
from trainables.data.rows import read_rows

PROGRAM = (sys.executable, "-m", "orchestrator.cli.evidence")
ASKED = ("--base-model", "tiny/gpt2-medium", "--data", "tiny/alpaca", "--only", "grid,sensitivity,card", "--steps", "2")
CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n# Rows\n"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def evidence(tiny_folder, tmp_path_factory) -> Iterator[tuple[Path, Finished, Finished]]:
    """A first call, and the same again."""
    cwd, logs = tmp_path_factory.mktemp("evidence"), mkdtemp(prefix="ray", dir="/tmp")
    rows = cwd / "rows"
    (rows / "data").mkdir(parents=True)
    table = pa.Table.from_pylist([asdict(row) for row in read_rows("demo").rows[:400]])
    pq.write_table(table, rows / "data" / "train-00000-of-00001.parquet")
    (rows / "README.md").write_text(CARD)
    with hub_server({"tiny/gpt2-medium": tiny_folder}, {"tiny/alpaca": rows}) as endpoint:
        hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cwd / "home"), "RAY_TMPDIR": logs}
        first = command(*ASKED, cwd=cwd, program=PROGRAM, timeout=1800, **hub)
        print(first.err)
        yield cwd, first, command(*ASKED, cwd=cwd, program=PROGRAM, timeout=600, **hub)
    shutil.rmtree(logs, ignore_errors=True)


def test_every_cell_of_the_grid_is_run_under_six_seeds_and_evaluated_on_the_test_rows(evidence):
    cwd, first, _ = evidence
    assert first.code == 0, first.err
    trials = SweepSnapshot.read("gpt2-medium-grid", cwd / "mlflow_runs").trials
    cells = {(trial.config.precision, trial.config.rank, trial.config.seed) for trial in trials}
    assert len(cells) == len(trials) == 48
    assert all(trial.test_evaluation for trial in trials)


def test_the_card_is_filled_from_the_grid_and_the_sensitivity_run(evidence):
    cwd, _, _ = evidence
    card = (cwd / "MODEL_CARD.md").read_text()
    assert "tiny/gpt2-medium" in card
    assert "5 seeds" in card
    assert "run gpt2-medium-sensitivity" in card


def test_the_same_call_again_trains_nothing_and_says_so(evidence):
    _, _, again = evidence
    assert again.code == 0, again.err
    assert "resume gpt2-medium-grid" in again.out
    assert "nothing is left to run" in again.err
    assert "sensitivity: " in again.err
    assert "done already" in again.err
