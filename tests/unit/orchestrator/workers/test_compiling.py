"""The process that compiles kernels beside a worker's imports: where it is begun, and that it ends by itself."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from orchestrator.workers import compiling


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """Commands that were begun, on a machine of 8 cores where Triton has kept nothing."""
    commands = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(compiling, "compute_capability", lambda: 90)
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: commands.append(command) or "a process")
    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    return commands


def test_it_is_begun_where_triton_has_kept_nothing(begun, tmp_path):
    assert compiling.begin("cuda") == "a process"
    assert begun == [[sys.executable, "-P", "-m", "trainables.models.compile_ahead", "90"]]
    (tmp_path / ".triton" / "cache").mkdir(parents=True)
    assert compiling.begin("cuda") == "a process"


@pytest.mark.parametrize("where", ["TRITON_HOME", "TRITON_CACHE_DIR"])
def test_it_is_not_begun_where_triton_has_kept_something(begun, where, tmp_path, monkeypatch):
    kept = tmp_path / "own" if where == "TRITON_CACHE_DIR" else tmp_path / "own" / ".triton" / "cache"
    (kept / "a-kernel").mkdir(parents=True)
    monkeypatch.setenv(where, str(tmp_path / "own"))
    assert compiling.begin("cuda") is None
    assert begun == []


def test_it_is_not_begun_without_a_gpu_or_with_few_cores(begun, monkeypatch):
    assert compiling.begin("cpu") is None
    monkeypatch.setattr(compiling, "compute_capability", lambda: None)
    assert compiling.begin("cuda") is None
    monkeypatch.setattr(compiling, "compute_capability", lambda: 90)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    assert compiling.begin("cuda") is None
    assert begun == []


def test_a_machine_that_cannot_begin_it_does_without(begun, monkeypatch):
    def refuses(*_, **__):
        raise OSError("no process left")

    monkeypatch.setattr(subprocess, "Popen", refuses)
    assert compiling.begin("cuda") is None


def test_without_triton_it_says_nothing_and_ends(tmp_path):
    if find_spec("triton"):
        pytest.skip("Triton is here: tests/gpu has what the process compiles")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", compiling.MODULE, "90"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert (ended.stdout, ended.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []
