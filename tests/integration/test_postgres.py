"""Tracking for a team: several sweeps at once into an MLflow server on a real PostgreSQL."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from urllib.request import urlopen

import pytest

from orchestrator.cli.running import run_sweep
from orchestrator.ledger import Ledger
from orchestrator.settings import sweep_folder
from orchestrator.tracking.publishing import publish
from orchestrator.tracking.server import check_server
from tests.support.sweeps import make
from tests.support.swept import swept
from trainables.values.errors import ConfigError

N_SWEEPS = 2
BINARIES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
INITDB = shutil.which("initdb", path=f"{BINARIES}:{os.environ['PATH']}")
USER = "nobody"
"""PostgreSQL refuses to run as root."""

needs_postgresql = pytest.mark.skipif(INITDB is None, reason="no PostgreSQL: apt-get install postgresql")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def as_unprivileged() -> dict[str, object]:
    return {"user": USER, "group": "nogroup"} if os.getuid() == 0 else {}


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """A fresh PostgreSQL on the loopback address, as SQLAlchemy addresses it."""
    folder = Path(mkdtemp(prefix="pg-", dir="/tmp"))
    binaries = Path(INITDB).resolve().parent
    if os.getuid() == 0:
        shutil.chown(folder, USER, "nogroup")
    data, port = folder / "data", free_port()
    run = {"check": True, "capture_output": True, "cwd": folder, **as_unprivileged()}
    subprocess.run([binaries / "initdb", "-D", data, "-U", "mlflow", "--auth=trust", "--no-sync"], **run)
    options = ["-c", f"port={port}", "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
    server = subprocess.Popen(
        [binaries / "postgres", "-D", data, *options], cwd=folder, stderr=subprocess.DEVNULL, **as_unprivileged()
    )
    try:
        ready = [binaries / "pg_isready", "--quiet", "--host=127.0.0.1", f"--port={port}"]
        wait_until(lambda: subprocess.run(ready).returncode == 0, server)
        yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(timeout=30)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def tracking_uri(database, tmp_path_factory) -> Iterator[str]:
    """An MLflow server in front of it."""
    port = free_port()
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    arguments += ["--backend-store-uri", database.replace("postgresql://", "postgresql+psycopg2://")]
    artifacts = tmp_path_factory.mktemp("artifacts")
    arguments += ["--artifacts-destination", str(artifacts / "store"), "--serve-artifacts"]
    with (artifacts / "log").open("w+") as log:
        command = [sys.executable, "-m", "mlflow", "server", *arguments]
        env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # more processes, of which we use none
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), server)
            yield f"http://127.0.0.1:{port}"
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=60)
            log.seek(0)
            print(log.read()[-3000:])


def answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=1) as answer:
            return answer.status == 200
    except OSError:
        return False


def wait_until(condition, server: subprocess.Popen, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, "the server ended"
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError("the server did not get ready")


@contextmanager
def server_of(answer: bytes) -> Iterator[str]:
    """A server that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_of_another_major_version_is_named_before_the_first_trial_and_an_absent_one_is_none(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with (
        server_of(b"2.9.1") as uri,
        pytest.raises(ConfigError, match=r"server at 127.*is version 2\.9\.1, here is 3\."),
    ):
        run_sweep(make(tracking_uri=uri), resume=False, as_json=False)
    assert list(tmp_path.iterdir()) == []
    with server_of(version("mlflow").encode()) as uri:
        check_server(uri)
    with server_of(b"<html>a login page</html>") as uri:
        check_server(uri)
    check_server(f"http://127.0.0.1:{free_port()}")


@needs_postgresql
def test_several_sweeps_at_once_are_whole_in_postgresql(tracking_uri, database, tmp_path, caplog):
    """Each driver has a folder of its own, as on machines of their own; the server creates one experiment."""
    roots = [tmp_path / f"driver{i}" / "mlflow_runs" for i in range(N_SWEEPS)]
    asked = [swept(root, name=f"team{i}", tracking_uri=tracking_uri)[0] for i, root in enumerate(roots)]
    for i, (settings, root) in enumerate(zip(asked, roots, strict=True)):
        ledger = Ledger(sweep_folder(settings.name, root) / "ledger.db")
        ledger.set_fact("id", f"{i}" * 32)  # by which MLflow tells them apart
        ledger.close()
    with ThreadPoolExecutor(N_SWEEPS) as pool:
        pages = list(pool.map(lambda pair: publish(*pair, interrupted=False), zip(asked, roots, strict=True)))
    assert all(pages), caplog.text
    found = {row[0]: row[1] for row in rows(database, PARENTS)}
    assert set(found) == {settings.name for settings in asked}
    for settings, root in zip(asked, roots, strict=True):
        ledger = Ledger(sweep_folder(settings.name, root) / "ledger.db", read_only=True)
        trials = ledger.trials()
        ledger.close()
        children = dict(rows(database, CHILDREN, found[settings.name]))
        assert children.keys() == {trial.key for trial in trials}
        for trial in trials:
            losses = rows(database, HISTORY, children[trial.key])
            assert [(step, value) for step, value in losses] == [(m.step, m.eval_loss_nats) for m in trial.history]
    assert len(rows(database, "SELECT name FROM experiments WHERE name = 'qlora-sweep'")) == 1


PARENTS = """
SELECT name, run_uuid FROM runs WHERE run_uuid NOT IN (SELECT run_uuid FROM tags WHERE key = 'mlflow.parentRunId')
"""
CHILDREN = """
SELECT trial.value, trial.run_uuid FROM tags AS trial JOIN tags AS parent USING (run_uuid)
WHERE trial.key = 'trial_key' AND parent.key = 'mlflow.parentRunId' AND parent.value = %s
"""
HISTORY = "SELECT step, value FROM metrics WHERE run_uuid = %s AND key = 'eval_loss_nats' ORDER BY step"


def rows(database: str, query: str, *values: str) -> list[tuple]:
    """What PostgreSQL itself holds."""
    import psycopg2

    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute(query, values)
        return cursor.fetchall()
