"""MLflow locked, absent, silent, newer or too late: the sweep ends, and sync completes it."""

import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.ledger import Ledger
from orchestrator.settings import sweep_folder
from orchestrator.settings.stored import save
from orchestrator.tracking.client import open_client
from orchestrator.tracking.projection import Tracker
from orchestrator.tracking.runs import families
from orchestrator.tracking.store import store_file, store_uri
from orchestrator.tracking.writer import MlflowWriter, WriteResult
from orchestrator.verify import checks as verify
from tests.support.stores import place_store
from tests.support.sweeps import REPO, environment
from tests.support.swept import swept
from trainables.values.errors import ConfigError

SLACK_SECONDS = 60.0
"""For a process to start on a busy machine; what is measured here would otherwise wait for minutes or for ever."""


def finished(settings, root: Path) -> tuple[WriteResult, float]:
    """What the writer comes to at the end of a sweep without files, and the seconds it took."""
    writer = MlflowWriter(settings.name, root)
    writer.start()
    begin = time.monotonic()
    flushed = writer.finish([], 1.0, interrupted=False)
    return flushed, time.monotonic() - begin


def differences(root: Path) -> list[str]:
    return [str(found) for found in verify.run("t", root).differences if found.part == "MLflow"]


def synced(settings, root: Path) -> None:
    """After what sync does, its files left out, MLflow holds the sweep once, whole."""
    with closing(Ledger(sweep_folder("t", root) / "ledger.db")) as ledger:
        Tracker(settings, ledger, root).finish(SweepSnapshot.of(settings, ledger), [], interrupted=False)
    assert differences(root) == []


@pytest.fixture(autouse=True)
def _process_environment(monkeypatch):
    """The writer's process imports this checkout."""
    monkeypatch.setenv("PYTHONPATH", str(REPO))


# --- a store that cannot be written


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield
        db.execute("ROLLBACK")


def test_a_locked_store_keeps_the_end_for_seconds_and_sync_completes_it(tmp_path):
    settings, _ = swept(tmp_path, n_trials=1)
    place_store(tmp_path)
    with locked(store_file(tmp_path)):
        flushed, seconds = finished(settings, tmp_path)
    assert (flushed.page, flushed.n_whole) == (None, 0)
    assert seconds < SLACK_SECONDS
    assert flushed.reason
    synced(settings, tmp_path)


def test_a_store_that_is_free_is_written_to_the_end_by_the_process(tmp_path):
    settings, result = swept(tmp_path)
    place_store(tmp_path)
    flushed, _ = finished(settings, tmp_path)
    assert re.match(r"http://127.0.0.1:5000/#/experiments/1/runs/[0-9a-f]{32}", str(flushed.page)), flushed
    assert flushed.n_whole == len(result.trials)
    assert differences(tmp_path) == []


@contextmanager
def silent_server() -> Iterator[int]:
    """Takes connections and never answers; yields its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield server.getsockname()[1]


@contextmanager
def absent_server() -> Iterator[int]:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield port


@pytest.mark.parametrize("server", [silent_server, pytest.param(absent_server, marks=pytest.mark.slow)])
def test_a_server_that_does_not_answer_keeps_the_end_for_seconds_and_its_address_is_not_said(tmp_path, server):
    with server() as port:
        address = f"http://127.0.0.1:{port}"
        settings, _ = swept(tmp_path, n_trials=1, tracking_uri=address)
        flushed, seconds = finished(settings, tmp_path)
    assert (flushed.page, flushed.n_whole) == (None, 0)
    assert seconds < SLACK_SECONDS
    assert str(port) not in str(flushed.reason)
    at_home = settings.model_copy(update={"tracking_uri": None})
    place_store(tmp_path)
    (sweep_folder("t", tmp_path) / "tracking-address").unlink()
    synced(at_home, tmp_path)


def test_a_store_of_a_newer_mlflow_is_said_in_one_sentence(tmp_path):
    settings, _ = swept(tmp_path, n_trials=1)
    place_store(tmp_path)
    with closing(sqlite3.connect(store_file(tmp_path))) as db:
        db.execute("UPDATE alembic_version SET version_num = 'f00df00df00d'")
        db.commit()
    flushed, _ = finished(settings, tmp_path)
    assert flushed.page is None
    assert "was written by a newer MLflow than" in str(flushed.reason)
    assert str(flushed.reason).endswith("install that one, or move the file away")
    with pytest.raises(ConfigError, match="was written by a newer MLflow"):
        synced(settings, tmp_path)


def test_the_writer_ends_with_its_driver(tmp_path):
    """Whatever kills the driver closes the pipe between them."""
    settings, _ = swept(tmp_path)
    writer = MlflowWriter(settings.name, tmp_path)
    writer.start()
    process = writer._process
    assert process is not None
    process.stdin.close()
    assert process.wait(SLACK_SECONDS) == 0
    writer._process = None
    assert "not started" in str(writer.finish([], 1.0, interrupted=False).reason)


def test_the_writer_killed_at_work_leaves_the_whole_ledger_in_its_one_file(tmp_path):
    """As every sweep ends: the driver closes the ledger, then kills the writer."""
    settings, result = swept(tmp_path, n_trials=1)
    place_store(tmp_path)
    writer = MlflowWriter(settings.name, tmp_path)
    with closing(Ledger(sweep_folder("t", tmp_path) / "ledger.db")) as ledger:
        writer.start()
        ledger.set_fact("finished", True)
        client, experiment_id = open_client(store_uri(tmp_path), tmp_path)
        end = time.monotonic() + SLACK_SECONDS
        while not client.search_runs([experiment_id]):  # it has the ledger by now
            assert time.monotonic() < end
            time.sleep(0.2)
        ledger.set_fact("last", "words")
    writer.stop()
    copyfile(ledger.path, tmp_path / "alone.db")
    with closing(Ledger(tmp_path / "alone.db", read_only=True)) as alone:
        assert alone.fact("last") == "words"
        assert alone.trials() == list(result.trials)


# --- answers that are lost, and calls that are heard late


class LostAnswers:
    """An MlflowClient each of whose calls is heard, and the answer to the first of each is lost."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._heard: set[str] = set()
        self.n_lost = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            answer = getattr(self._client, name)(*arguments, **named)
            what = name + re.sub(r"timestamp=\d+|0x[0-9a-f]+", "", repr((arguments, named)))
            if name.startswith(("get", "search", "list")) or what in self._heard:
                return answer
            self._heard.add(what)
            self.n_lost += 1
            raise ConnectionError(f"the answer to {name} was lost")

        return call


class LateCreations:
    """An MlflowClient that takes every second run for lost, and makes it when the next one has been made."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._late: list[tuple[tuple, dict]] = []
        self.n_late = 0

    def create_run(self, *arguments: Any, **named: Any) -> Any:
        if not self._late:
            self._late.append((arguments, named))
            self.n_late += 1
            raise ConnectionError("no answer in time")
        run = self._client.create_run(*arguments, **named)
        for theirs, others in self._late:
            self._client.create_run(*theirs, **others)
        self._late.clear()
        return run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@pytest.mark.parametrize("kind", [LostAnswers, LateCreations])
def test_answers_that_are_lost_or_late_leave_no_run_and_no_model_twice(tmp_path, kind):
    settings, result = swept(tmp_path, n_trials=1)
    place_store(tmp_path)
    client, experiment_id = open_client(store_uri(tmp_path), tmp_path)
    faulty: Any = kind(client)
    with closing(Ledger(sweep_folder("t", tmp_path) / "ledger.db")) as ledger:
        tracker, n_failed = None, 0
        for _ in range(1000):  # as orchestrator.tracking.writer_process.Writer does
            try:
                if tracker is None:
                    tracker = Tracker(settings, ledger, tmp_path, (faulty, experiment_id))
                else:
                    tracker.look()
                tracker.finish(SweepSnapshot.of(settings, ledger), [], interrupted=False)
                break
            except ConnectionError:
                n_failed += 1
        else:
            raise AssertionError("no end")
    assert n_failed >= len(result.trials)
    (parent, children), (none, strays) = families(client, experiment_id, "5" * 32)
    assert sorted(run.data.tags["trial_key"] for run in children) == sorted(trial.key for trial in result.trials)
    assert (none, strays, parent.info.status) == (None, [], "FINISHED")
    models = client.search_logged_models([experiment_id])
    assert sorted(model.tags["trial_key"] for model in models) == sorted(result.front.keys)
    synced(settings, tmp_path)


def test_runs_that_are_there_twice_or_under_another_parent_go_with_the_next_sync(tmp_path):
    settings, result = swept(tmp_path, n_trials=2)
    place_store(tmp_path)
    synced(settings, tmp_path)
    client, experiment_id = open_client(store_uri(tmp_path), tmp_path)
    (parent, children), _ = families(client, experiment_id, "5" * 32)
    client.create_run(experiment_id, tags=children[0].data.tags)  # a child twice
    other = client.create_run(experiment_id, tags={"sweep_id": "5" * 32})  # the sweep twice, with a child
    client.create_run(experiment_id, tags=children[1].data.tags | {"mlflow.parentRunId": other.info.run_id})
    client.delete_run(parent.info.run_id)  # all its children have no parent now
    assert sum("is a child of no run of this sweep" in line for line in differences(tmp_path)) == len(result.trials) + 1
    synced(settings, tmp_path)


# --- a store that is being made


def makers(what: str, folder: Path, n: int) -> None:
    done = subprocess.run(
        [sys.executable, REPO / "tests" / "support" / "store_processes.py", what, str(folder), str(n)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_six_processes_that_make_the_store_at_once_make_one(tmp_path):
    makers("at_once", tmp_path, 1)


@pytest.mark.slow
def test_six_processes_that_make_the_store_at_once_make_one_twenty_times(tmp_path):
    makers("at_once", tmp_path, 20)


def test_a_process_killed_while_it_makes_the_store_leaves_none_that_is_half_made(tmp_path):
    makers("killed", tmp_path, 1)


@pytest.mark.slow
def test_processes_killed_at_ten_moments_while_they_make_the_store_leave_none_that_is_half_made(tmp_path):
    makers("killed", tmp_path, 10)


def test_the_tracking_address_is_kept_for_its_owner_alone_and_takes_no_password(tmp_path):
    settings, _ = swept(tmp_path, tracking_uri="http://mlflow.example:5000")
    folder = sweep_folder("t", tmp_path)
    save(settings, folder)
    assert (folder / "tracking-address").stat().st_mode & 0o777 == 0o600
    assert "mlflow.example" not in (folder / "settings.json").read_text()
    assert "mlflow.example" not in repr(settings)


# --- haste


BUSY = """
import queue, threading
from orchestrator.tracking.writer_process import listen

class Busy:
    fault, n_whole = None, 3

orders = queue.Queue()
threading.Thread(target=listen, args=(orders, Busy()), kwargs={"hurried_seconds": 0.5}, daemon=True).start()
orders.get()
while True:  # its store answers each call
    pass
"""


@pytest.mark.parametrize("after_seconds", [0, 2])
def test_a_store_that_answers_on_and_on_is_given_seconds_once_somebody_waits_for_the_end(tmp_path, after_seconds):
    writer = MlflowWriter("t", tmp_path)
    writer._command = [sys.executable, "-c", BUSY]
    writer.start()
    begin = time.monotonic()
    flushed = writer.finish([], 1.0, interrupted=True, hurried=lambda: time.monotonic() - begin > after_seconds)
    assert (flushed.page, flushed.n_whole) == (None, 3)
    assert "writing took longer than" in str(flushed.reason)
    assert after_seconds < time.monotonic() - begin < SLACK_SECONDS
