"""The stopping rule in a sweep by real Ray Tune, what stands on the screen at its end, and a refused one."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import psutil
import pytest
import ray

from orchestrator.driver import sweep
from orchestrator.driver.prepare import prepare
from tests.faults.pretend import Worse, connected
from tests.support.sweeps import GRID, REPO, command, environment, make, space
from trainables.values.errors import ConfigError


def test_under_real_ray_tune_a_trial_s_end_is_known_to_the_rule_and_stops_others(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPO))  # of the workers
    ranks = {
        "parameters": {"rank": {"values": list(range(1, 13))}},
        "fixed": {"alpha": 8, "max_steps": 8, "precision": "nf4"},
    }
    asked = make(space(GRID | ranks, early_terminate={"type": "hypervolume"}), asynchronous=True)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    tokens, noted, order = [], [], []

    def started(ledger, _) -> None:
        tokens.append(os.environ.get("AWS_SESSION_TOKEN"))
        noted.extend((span.process, span.phase) for span in ledger.spans())

    @contextmanager
    def prepared(settings, root):
        with connected(settings, root) as bring:
            order.append("connected")
            yield lambda: order.append("inputs are waited for") or bring()

    given = {"prepare": prepared, "meanwhile": lambda: order.append("meanwhile")}
    try:
        result = sweep.run(asked, tmp_path, resume=False, started=started, trainable=Worse, **given)
        niceness = ray.get(ray.remote(lambda: os.nice(0)).remote())
    finally:
        ray.shutdown()
    assert tokens == ["token"], "MLflow's writer, started then, cannot write to a cloud"
    assert noted == 2 * [("driver", "inputs")], "who looks while it runs sees what the driver did"
    assert order == ["connected", "meanwhile", "inputs are waited for"]
    assert niceness == os.nice(0), "trials are behind what else runs on this machine"
    ended = {trial.config.rank: trial for trial in result.trials if trial.origin == "search"}
    assert ended[1].state == "completed", ended[1].reason
    assert len(ended) == 12
    stopped = [(len(trial.history), trial.reason) for _, trial in sorted(ended.items()) if trial.state == "pruned"]
    assert any(n == 4 and "its end" in reason for n, reason in stopped)
    assert stopped[-1][0] == 1
    assert "at step 1 its most hopeful end" in stopped[-1][1]


def test_an_interrupt_while_inputs_are_read_leaves_no_worker_though_its_traceback_is_kept(tmp_path, monkeypatch):
    """As a notebook keeps it; the next sweep of the process would wait for their places without end."""
    monkeypatch.setenv("PYTHONPATH", str(REPO))

    seen = []

    @contextmanager
    def interrupted(settings, root):
        def bring():
            seen.append("asked")
            raise KeyboardInterrupt

        with connected(settings, root):
            try:
                yield bring
            finally:
                seen.append("closed")

    try:
        with pytest.raises(KeyboardInterrupt) as kept:
            sweep.run(make(n_trials=2), tmp_path, resume=False, started=print, prepare=interrupted)
        end = time.monotonic() + 30
        while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"] and time.monotonic() < end:
            time.sleep(0.2)
        assert ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]
    finally:
        ray.shutdown()
    assert kept.tb is not None
    assert seen == ["asked", "closed"], "nothing is fetched any more"


def test_nothing_is_fetched_for_a_sweep_that_no_node_can_run(tmp_path, monkeypatch):
    refused = pytest.raises(ConfigError, match="the largest node of the cluster has 0")
    asked = make(device="cuda", base_model="some/base")
    try:
        with socket.create_server(("127.0.0.1", 0)) as silent:  # a hub that is waited for
            monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
            monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "60")
            with refused, prepare(asked, tmp_path):
                pytest.fail("it was let through")
            children = [" ".join(one.cmdline()) for one in psutil.Process().children() if one.status() != "zombie"]
    finally:
        ray.shutdown()
    assert not [line for line in children if "orchestrator.driver.fetching" in line]


def test_the_answer_stands_on_the_screen_before_anything_is_written_and_each_phase_is_named(tmp_path):
    log = str(tmp_path / "log")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.pretend", "run", "a", "plain"],
        cwd=tmp_path,
        env=environment(PRETEND_LOG=log, PRETEND_SECONDS="0", PRETEND_TRIALS="2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # in the order in which both were printed
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    marks = ("Pareto front: ", "Answer: ", "writing figures", "writing MLflow", "report: ")
    found = [next(i for i, line in enumerate(done.stdout.splitlines()) if line.startswith(mark)) for mark in marks]
    assert found == sorted(found), done.stdout


def processes_over(folder: str) -> list[str]:
    """Command lines that name a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if folder in text:
            found.append(text)
    return found


def test_a_command_refused_while_ray_starts_ends_with_its_exit_code_and_leaves_no_ray(tmp_path):
    prompt = "a prompt that leaves its response no room " * 120
    rows = [{"instruction": f"{i} {prompt}", "input": "", "output": "yes"} for i in range(400)]
    (tmp_path / "long.json").write_text(json.dumps(rows))
    folder = mkdtemp(prefix="ray", dir="/tmp")  # Ray's sockets want a short path
    try:
        refused = command("run", "--data", "long.json", "--base-model", "demo", cwd=tmp_path, RAY_TMPDIR=folder)
        assert refused.code == 3, refused.err
        assert "no validation row keeps 16 tokens" in refused.err.splitlines()[-1]
        end = time.monotonic() + 60
        while (left := processes_over(folder)) and time.monotonic() < end:
            time.sleep(0.2)
        assert not left
    finally:
        shutil.rmtree(folder, ignore_errors=True)


AGAIN = """
import ray
from orchestrator.cluster import private_ray, ray_cluster
private_ray.begin()
private_ray.begin()
ray_cluster.connect(None)
assert ray.is_initialized()
private_ray.begin()
assert not private_ray.waited_for()
"""


def test_ray_that_is_starting_for_a_run_that_was_refused_serves_the_next_one():
    folder = mkdtemp(prefix="ray", dir="/tmp")
    try:
        done = subprocess.run(
            [sys.executable, "-c", AGAIN],
            env=environment(RAY_TMPDIR=folder),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_sweep_whose_output_nobody_reads_is_written_whole_all_the_same(tmp_path):
    program = f"{shlex.quote(sys.executable)} -m tests.faults.pretend run a plain"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{program} | true"],
        cwd=tmp_path,
        env=environment(PRETEND_LOG=str(tmp_path / "log"), PRETEND_SECONDS="0", PRETEND_TRIALS="2"),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "a: ended" in done.stderr
    assert (tmp_path / "mlflow_runs" / "sweeps" / "a" / "report.html").is_file()
    assert command("verify", "a", cwd=tmp_path).code == 0


def parts_of_ray(pid: int) -> list[str]:
    """Ray's own processes among those that a process has started."""
    names = [child.name() for child in psutil.Process(pid).children(recursive=True)]
    return [name for name in names if name in ("raylet", "gcs_server") or name.startswith("ray::")]


def test_files_are_written_without_ray_so_that_what_ends_it_ends_no_sweep(tmp_path):
    """SIGTERM for a whole process group, as service managers send it, ends all of Ray's processes."""
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.pretend", "run", "a", "plain"],
        cwd=tmp_path,
        env=environment(PRETEND_LOG=str(tmp_path / "log"), PRETEND_SECONDS="0", PRETEND_TRIALS="2"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said = []
        for line in driver.stderr:
            said.append(line)
            if line.startswith("a: starting workers"):
                assert parts_of_ray(driver.pid)
            if line.startswith("writing figures"):
                break
        assert parts_of_ray(driver.pid) == []
        os.killpg(driver.pid, signal.SIGTERM)
        begin = time.monotonic()
        said += driver.stderr
        assert driver.wait(timeout=240) == 0, "".join(said)
        seconds = time.monotonic() - begin
    finally:
        driver.kill()
        driver.wait()
    assert "".join(said).count("stopping: ") == 1
    assert (tmp_path / "mlflow_runs" / "sweeps" / "a" / "report.html").is_file()
    assert seconds < 55, "Ray's minute"
