"""Security of whole processes: ports of a real Ray and of the pages, secrets, markup and code that would run."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from orchestrator.security import ray_guard
from tests.support.hostile import EVIL, hostile_report, with_code
from tests.support.hub_server import hub_server
from tests.support.sweeps import CANARIES, CANARY, PRETEND, Finished, command, environment, start
from trainables.values.errors import ConfigError

# --- ports and tokens


def listening(pid: int) -> set[str]:
    """Addresses on which a process and its descendants take connections."""
    root = psutil.Process(pid)
    found = [one for process in (root, *root.children(recursive=True)) for one in process.net_connections("inet")]
    return {one.laddr.ip.removeprefix("::ffff:") for one in found if one.status == psutil.CONN_LISTEN}


def end(process: subprocess.Popen) -> None:
    """Kill a process and its descendants, who may hold its pipes."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in family:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.communicate()


OURS = "from orchestrator.cluster import ray_cluster; ray_cluster.connect(None); import ray"
OPEN = (
    "import os; os.environ |= {'RAY_AUTH_MODE': 'disabled', 'RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER': '0'}\n"
    "import ray; ray.init(address='local', num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20)"
)
STARTED = "\nprint('at', ray.get_runtime_context().gcs_address, flush=True); input()"


@contextmanager
def ray_of(program: str, home: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """A process that has started a Ray, and where that listens; both end with the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", program + STARTED],
        env=environment(HOME=str(home)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        address = next(line for line in process.stdout if line.startswith("at ")).split()[1]
        yield process, address
    finally:
        end(process)


def test_our_ray_listens_on_the_loopback_address_alone_and_asks_for_a_token_that_is_private(ray_home, monkeypatch):
    (ray_home / ".ray").mkdir()
    (ray_home / ".ray" / "auth_token").write_text("f" * 64)  # as Ray leaves it
    (ray_home / ".ray" / "auth_token").chmod(0o644)
    with ray_of(OURS, ray_home) as (process, address):
        assert listening(process.pid) == {"127.0.0.1"}
        (ray_home / "random.py").write_text("raise SystemExit('not the library')")
        monkeypatch.chdir(ray_home)
        assert ray_guard.guard_of(address) == "token"
        started = " ".join(word for one in psutil.Process(process.pid).children() for word in one.cmdline())
        assert f"{ray_guard.private_folder()}/session_" in started
    assert stat.S_IMODE(ray_guard.private_folder().parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((ray_home / ".ray" / "auth_token").stat().st_mode) == 0o600


def test_a_cluster_that_asks_for_no_token_is_refused_unless_that_is_wished(ray_home):
    with ray_of(OPEN, ray_home) as (_, address):
        with pytest.raises(ConfigError, match=r"asks for no token.*--insecure"):
            ray_guard.guard_cluster(address, insecure=False)
        ray_guard.guard_cluster(address, insecure=True)


@pytest.mark.slow
def test_the_pages_server_listens_on_the_loopback_address_alone_and_refuses_another_hosts_name(tmp_path):
    import http.client
    import socket

    from orchestrator.tracking.client import open_client
    from orchestrator.tracking.store import store_uri

    state = tmp_path / "mlflow_runs"
    open_client(store_uri(state), state)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    process = start("ui", "--port", str(port), cwd=tmp_path)
    try:
        codes = {}
        for name in ("localhost", "attacker.example"):
            deadline = time.monotonic() + 120
            while name not in codes:
                try:
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                    connection.request("GET", "/", headers={"Host": f"{name}:{port}"})
                    codes[name] = connection.getresponse().status
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.3)
        assert codes == {"localhost": 200, "attacker.example": 403}
        assert listening(process.pid) == {"127.0.0.1"}
    finally:
        end(process)


# --- secrets


NOWHERE = f"http://{CANARY}.invalid:5000"


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Iterator[tuple[Path, Path, list[Finished]]]:
    """A sweep of pretended trials whose MLflow is never there, then two syncs, one to that and one to a store that is:
    the working directory, Ray's logs, and what was printed. All under an umask that lets everybody write."""
    cwd = tmp_path_factory.mktemp("secrets")
    logs = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # Ray's sockets want a short path
    variables = {**CANARIES, "RAY_TMPDIR": str(logs), "HOME": str(cwd), "HF_HUB_OFFLINE": "1"}
    pretended = {"PRETEND_LOG": str(logs / "begun"), "PRETEND_TRIALS": "1", "PRETEND_TRACKING_URI": NOWHERE}
    umask = os.umask(0)
    try:
        done = [command("run", "a", "pairs", cwd=cwd, program=PRETEND, **variables, **pretended)]
        done.append(command("sync", "a", cwd=cwd, **variables))
        address = cwd / "mlflow_runs" / "sweeps" / "a" / "tracking-address"
        assert stat.S_IMODE(address.stat().st_mode) == 0o600
        address.unlink()
        done.append(command("sync", "a", cwd=cwd, **variables))
        yield cwd, logs, done
    finally:
        os.umask(umask)
        shutil.rmtree(logs, ignore_errors=True)


def test_a_sweep_whose_mlflow_is_never_there_ends_with_0_and_sync_completes_it(swept):
    _, _, (run, failed, synced) = swept
    assert (run.code, failed.code, synced.code) == (0, 1, 0), (run.err, failed.err, synced.err)
    assert "MLflow lacks " in run.err
    assert any(line.endswith("-m orchestrator.cli sync a") for line in run.err.splitlines())


def test_no_secret_and_no_tracking_address_stands_in_logs_ledger_mlflow_or_artifacts(swept):
    cwd, logs, done = swept
    assert CANARY not in "".join(part for one in done for part in (one.out, one.err))
    files = [path for place in (cwd, logs) for path in place.rglob("*") if path.is_file()]
    assert {"mlflow.db", "ledger.db", "raylet.out", "report.html"} <= {path.name for path in files}
    assert [str(path) for path in files if CANARY.encode() in path.read_bytes()] == []


def test_what_a_sweep_makes_others_cannot_write(swept):
    made = [swept[0] / "mlflow_runs", *(swept[0] / "mlflow_runs").rglob("*")]
    assert [str(path) for path in made if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)] == []


# --- markup


def test_markup_in_data_rows_does_not_run_in_the_report(tmp_path, request):
    """Opened in Chromium with the page's own policy, and again without it."""
    page_file = hostile_report(tmp_path)
    text = page_file.read_text(encoding="utf-8")
    assert "Content-Security-Policy" in text
    assert "window.ran" in text  # it is shown
    unguarded = tmp_path / "unguarded.html"
    unguarded.write_text(text.replace("Content-Security-Policy", "x"), encoding="utf-8")
    browser = request.getfixturevalue("browser")  # from here on it takes one
    for file in (page_file, unguarded):
        page = browser.new_page()
        page.goto(file.as_uri())
        assert page.evaluate("window.ran") is None
        assert page.locator("svg, iframe, [onerror], [onload]").count() == 0
        assert not any("window.ran" in text for text in page.locator("script").all_text_contents())
        assert "window.ran = 1" in page.inner_text("body")
    page.set_content(EVIL)  # the same words, as markup, would have run
    page.wait_for_function("window.ran !== undefined")


# --- code


def answering_yes(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python with a "y" for every question that it may ask."""
    chosen = environment(HF_HOME=str(cwd / "hf"), **variables)
    whole = [sys.executable, *arguments]
    return subprocess.run(whole, input="y\n" * 99, env=chosen, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("place", "file"),
    [
        ("folder", "config.json"),
        ("folder", "tokenizer_config.json"),
        ("random", "config.json"),
        ("hub", "tokenizer_config.json"),
    ],
)
def test_a_base_made_of_its_own_code_is_refused_by_name_and_does_not_run(place, file, tmp_path):
    base, mark = with_code(tmp_path / "base", "homemade", file)
    source = {"folder": str(base), "random": f"random:{base}", "hub": "some/base"}[place]
    log = []
    with hub_server(models={"some/base": base}, log=log) as endpoint:
        asked = ["--base-model", source, "--data", "demo", "--trials", "1", "--steps", "2"]
        done = answering_yes("-m", "orchestrator.cli", "run", *asked, cwd=tmp_path, HF_ENDPOINT=endpoint)
    assert not mark.exists()
    assert done.returncode == 2, done.stderr
    assert all(word in done.stderr for word in (file, "auto_map", "'homemade'")), done.stderr
    assert "Traceback" not in done.stderr
    assert not [line for line in log if "safetensors" in line]  # refused before the weights are fetched


READERS = """
import shutil, sys
from pathlib import Path
from orchestrator.report import export
from trainables import demo
from trainables.comparison import bias
from trainables.data.rows import read_rows
from trainables.data.tokenized import tokenize
from trainables.models import base_model, random_weights
from trainables.values.workload import Workload

here = Path.cwd()
rows = read_rows("demo")
for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(demo.FOLDER / name, here)


def run(script):
    (here / "generate.py").write_text(script)
    sys.argv = ["generate.py", "Name three colours."]
    exec(compile(script, "generate.py", "exec"), {"__file__": str(here / "generate.py")})


def readers(base):
    kept = {"base_fingerprint": "", "weights": "pretrained", "data": "", "data_folder": "", "data_digest": ""}
    workload = Workload(base_model=str(base), base_folder=str(base), compute_dtype="float32", **kept)
    yield "tokens", lambda: tokenize(rows, base, here)
    yield "16bit", lambda: base_model.load(workload, "16bit", "cpu")
    yield "nf4", lambda: base_model.load(workload, "nf4", "cpu")
    yield "drawn", lambda: random_weights.drawn(base, here)
    yield "bias", lambda: bias.prompt_rows(base, "Alpaca", 512)
    yield "script", lambda: run(export.script(("16bit", ()), workload, merged=False))


for base in map(Path, sys.argv[1:]):
    for name, read in readers(base):
        try:
            read()
            print(base.name, name, "read")
        except Exception as error:
            print(base.name, name, type(error).__name__, str(error).splitlines()[0])
"""


def test_whatever_reads_a_base_runs_none_of_its_code(tmp_path):
    """Also past the refusal of a command: a folder may change after it. Of GPT-2, transformers' own code is used."""
    both = ("config.json", "tokenizer_config.json")
    bases, marks = zip(*(with_code(tmp_path / name, name, *both) for name in ("gpt2", "homemade")), strict=True)
    done = answering_yes("-c", READERS, *map(str, bases), cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert not any(mark.exists() for mark in marks), done.stdout
    assert done.returncode == 0, done.stderr
    read = [line for line in done.stdout.splitlines() if line.endswith(" read")]
    assert read == [f"gpt2 {name} read" for name in ("tokens", "16bit", "nf4", "drawn", "bias")]
