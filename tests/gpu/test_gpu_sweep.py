"""A sweep by Ray on a real GPU, one of whose processes loses it."""

import os
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from orchestrator.driver import sweep
from orchestrator.workers.tune_trainable import SweepTrainable
from tests.support.sweeps import REPO, make, space

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]
LOSES = "TEST_GPU_LOSES"
"""Names a folder: until a file lies there, the second report of a worker comes after a device-side assertion."""


class Loses(SweepTrainable):
    """As ever, but for one assertion on the device, after which CUDA fails in this process for good."""

    n_reports = 0

    def step(self) -> dict[str, Any]:
        self.n_reports += 1
        lost = Path(os.environ[LOSES], f"lost-{os.getpid()}")
        if self.n_reports == 2 and not list(lost.parent.iterdir()):
            lost.touch()
            torch._assert_async(torch.zeros(1, device="cuda"))
        return super().step()


def test_a_process_that_lost_its_gpu_is_replaced_and_its_trial_ends_like_any_other(tmp_path, monkeypatch):
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setenv(LOSES, str(marks))
    found = [str(REPO), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(found))  # of the workers
    few = space(parameters={"rank": {"values": [1, 2, 4]}}, fixed={"alpha": 4, "precision": "16bit", "max_steps": 8})
    root = tmp_path / "mlflow_runs"
    try:
        result = sweep.run(make(few, device="cuda"), root, resume=False, started=lambda *_: None, trainable=Loses)
    finally:
        ray.shutdown()
    assert len(list(marks.iterdir())) == 1, "one process lost its GPU, once"
    ended = {trial.config.rank: (trial.state, trial.reason) for trial in result.trials if trial.origin == "search"}
    assert {rank: state for rank, (state, _) in ended.items()} == dict.fromkeys((1, 2, 4), "completed"), ended
