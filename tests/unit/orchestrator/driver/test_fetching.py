"""The process that brings the base model and the rows beside the driver."""

import io
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.driver.fetching import Fetching, _sendable
from trainables.models import inputs
from trainables.values.errors import ConfigError, SweepError

SOON_SECONDS, PATIENCE_SECONDS = 20, 60
"""Within the first the process must be gone; for the second it would wait for a hub."""
BEGUN = (
    "from orchestrator.driver.fetching import Fetching; import sys, time; from pathlib import Path; "
    "brought = Fetching(base_source='{}', rows_source='demo', cache=Path(sys.argv[1])); "
)


@pytest.fixture
def silent_hub() -> Iterator[socket.socket]:
    """Takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


def driver(program: str, hub: socket.socket, cache: Path, **pipes: int) -> subprocess.Popen:
    """A process that begins to bring a base model from a hub, and then does what the program says."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}",
        "HF_HUB_ETAG_TIMEOUT": str(PATIENCE_SECONDS),
        "HF_HOME": str(cache / "home"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return subprocess.Popen(
        [sys.executable, "-c", BEGUN.format("some/base") + program, str(cache)], env=environment, text=True, **pipes
    )


def child_of(pid: int) -> int:
    """The only child of a process's main thread."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + SOON_SECONDS
    while Path(f"/proc/{pid}").exists() and "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < end, "it goes on"
        time.sleep(0.05)


def test_it_brings_what_the_driver_would_bring_itself(tmp_path):
    given = {"base_source": "demo", "rows_source": "demo", "cache": tmp_path}
    assert Fetching(**given).result() == inputs.fetch(**given)


def test_what_is_wrong_with_the_inputs_is_raised_as_it_would_be_here(tmp_path):
    given = {"base_source": str(tmp_path), "rows_source": "demo", "cache": tmp_path / "cache"}
    with pytest.raises(ConfigError) as here:
        inputs.fetch(**given)
    with pytest.raises(ConfigError) as there:
        Fetching(**given).result()
    assert str(there.value) == str(here.value)
    assert "base_model.py" in there.value.__notes__[0], "where it came from"


def test_what_is_logged_there_is_logged_here(tmp_path, caplog):
    given = {"base_source": "demo", "rows_source": "demo"}
    with caplog.at_level(logging.INFO):
        inputs.fetch(**given, cache=tmp_path / "here")
        here = [(record.name, record.levelno, record.getMessage()) for record in caplog.records]
        caplog.clear()
        Fetching(**given, cache=tmp_path / "there").result()
    assert here
    assert [(record.name, record.levelno, record.getMessage()) for record in caplog.records] == here


def test_what_is_not_to_be_said_here_is_not_said_as_it_was_logged_there(tmp_path, caplog):
    assert logging.getLogger("trainables.data.rows").getEffectiveLevel() == logging.WARNING
    Fetching(base_source="demo", rows_source="demo", cache=tmp_path).result()
    assert not caplog.records


def test_files_of_the_folder_that_the_command_stands_in_are_not_run(tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise SystemExit('not the library')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert Fetching(base_source="demo", rows_source="demo", cache=tmp_path).result().base.source == "demo"


def test_without_standard_streams_it_brings_the_same(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import os\ntry: os.write(2, b'noise')\nexcept OSError: pass")
    monkeypatch.syspath_prepend(tmp_path)
    program = BEGUN.format("demo") + "Path(sys.argv[1], 'found').write_text(brought.result().base.source)"
    command = ["sh", "-c", 'exec "$0" "$@" >&- 2>&-', sys.executable, "-c", program, str(tmp_path)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=True)
    assert (tmp_path / "found").read_text() == "demo"


def said_with_the_demo(then: str, cache: Path) -> tuple[str, str]:
    """Standard output and error of a process that begins to bring the demo, and then does what is said."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", BEGUN.format("demo") + then, str(cache)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_the_driver_imports_neither_pytorch_nor_transformers_for_it(tmp_path):
    then = (
        "from orchestrator.driver import prepare, sweep; found = brought.result(); found.cut_counts(64); "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    assert said_with_the_demo(then, tmp_path) == ("set()\n", "")


def test_what_a_library_prints_is_no_answer(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys; {Fetching.__module__!r} in sys.orig_argv and print('a library')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert said_with_the_demo("print(brought.result().base.source)", tmp_path) == ("a library\ndemo\n", "")


def test_it_waits_in_silence_for_a_driver_that_asks_late(tmp_path):
    then = "import psutil; psutil.wait_procs(psutil.Process().children()); print(brought.result().base.source)"
    assert said_with_the_demo(then, tmp_path) == ("demo\n", "")


def test_it_ends_with_a_driver_that_was_killed(silent_hub, tmp_path):
    with driver("time.sleep(60)", silent_hub, tmp_path) as running:
        connection, _ = silent_hub.accept()  # it is in the middle of its work
        fetching = child_of(running.pid)
        running.send_signal(signal.SIGKILL)
        wait_until_gone(fetching)
        connection.close()


def test_ctrl_c_is_the_drivers_which_ends_it(silent_hub, tmp_path):
    with driver("brought.result()", silent_hub, tmp_path, stderr=subprocess.PIPE, start_new_session=True) as running:
        connection, _ = silent_hub.accept()
        fetching = child_of(running.pid)
        os.killpg(running.pid, signal.SIGINT)
        _, said = running.communicate(timeout=SOON_SECONDS)
        wait_until_gone(fetching)
        connection.close()
    assert said.count("KeyboardInterrupt") == 1, said


def test_ctrl_c_that_the_driver_answers_otherwise_does_not_end_it(silent_hub, tmp_path):
    program = "import signal; signal.signal(signal.SIGINT, lambda *_: print('asked', flush=True)); brought.result()"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with driver(program, silent_hub, tmp_path, **pipes, start_new_session=True) as running:
        connection, _ = silent_hub.accept()
        os.killpg(running.pid, signal.SIGINT)
        assert running.stdout.readline() == "asked\n"
        time.sleep(1)  # for what must not come
        fetching = child_of(running.pid)
        running.kill()
        wait_until_gone(fetching)
        connection.close()
        assert running.stderr.read() == ""


def test_a_process_that_was_killed_is_named_with_how_it_ended(silent_hub, tmp_path):
    with driver("brought.result()", silent_hub, tmp_path, stderr=subprocess.PIPE) as running:
        connection, _ = silent_hub.accept()
        os.kill(child_of(running.pid), signal.SIGKILL)
        _, said = running.communicate(timeout=SOON_SECONDS)
        connection.close()
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"{SweepError.__module__}.SweepError: the process that brings the base model and the rows")
    assert last.endswith("exit code -9")


class OfTwoParts(Exception):
    """An error of a library: what it is made of is not what it says, so that pickle cannot make it again."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


def test_half_an_answer_is_that_of_a_process_that_was_killed(tmp_path):
    fetching = Fetching(base_source=str(tmp_path), rows_source="demo", cache=tmp_path)
    whole = fetching._answers.read()
    fetching._answers = io.BytesIO(whole[:-3])
    with pytest.raises(SweepError, match="the process that brings the base model and the rows ended with exit code"):
        fetching.result()


def test_a_driver_that_wants_nothing_more_ends_it(silent_hub, tmp_path):
    program = "input(); brought.close(); print('closed', flush=True); time.sleep(60)"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with driver(program, silent_hub, tmp_path, **pipes) as running:
        connection, _ = silent_hub.accept()
        fetching = child_of(running.pid)
        running.stdin.write("\n")
        running.stdin.flush()
        assert running.stdout.readline() == "closed\n"
        assert not Path(f"/proc/{fetching}").exists()
        running.kill()
        connection.close()


def test_an_error_that_cannot_be_pickled_is_named_with_where_it_came_from():
    try:
        raise OfTwoParts("a file", "is damaged")
    except OfTwoParts as error:
        found = pickle.loads(pickle.dumps(_sendable(error)))
    assert isinstance(found, RuntimeError)
    assert str(found) == "OfTwoParts: a file: is damaged"
    assert "test_fetching.py" in found.__notes__[0]
