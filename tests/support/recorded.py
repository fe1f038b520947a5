"""The recorded sweeps where commands look for sweeps."""

import shutil
from pathlib import Path

from tests.bench.recorded import RECORDED, SWEEPS


def place_recorded(root: Path) -> None:
    """Copy them, their sensitivity run and the config of their base under `root`/mlflow_runs."""
    state = root / "mlflow_runs"
    for name in SWEEPS:
        shutil.copytree(RECORDED / name, state / "sweeps" / name)
    shutil.copytree(RECORDED / "sensitivity-smollm2", state / "sensitivity" / "smollm2-sensitivity")
    shutil.copytree(RECORDED / "SmolLM2-135M", state / "recorded" / "SmolLM2-135M")
