"""Nobody is let in, and nothing gets out: ports, tokens, folders, secrets, and pages that data rows are shown on."""

import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli import app
from orchestrator.ledger import Ledger
from orchestrator.report import content as report
from orchestrator.report import outputs
from orchestrator.security import ray_guard
from orchestrator.security.folder_access import refuse_shared
from orchestrator.security.redaction import HIDDEN, redacted
from orchestrator.settings import save, sweep_folder
from orchestrator.tracking import ui
from orchestrator.workers import adapter_store
from tests.support.hub_server import hub_server
from tests.support.in_process import called
from tests.support.sweeps import (
    CANARIES,
    CANARY,
    PRETEND,
    REPO,
    WORKLOAD,
    Finished,
    command,
    environment,
    make,
    start,
    trial,
)
from trainables import demo
from trainables.models import base_model
from trainables.values.errors import ConfigError, Unreachable

EVIL = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'><svg onload='window.ran = 3'>"

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


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home of its own, without any of Ray's variables."""
    for name in (ray_guard.MODE, ray_guard.TOKEN, ray_guard.TOKEN_PATH, ray_guard.LOOPBACK):
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_our_ray_listens_on_the_loopback_address_alone_and_asks_for_a_token_that_is_private(home):
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("f" * 64)  # as Ray leaves it
    (home / ".ray" / "auth_token").chmod(0o644)
    with ray_of(OURS, home) as (process, address):
        assert listening(process.pid) == {"127.0.0.1"}
        assert ray_guard.guard_of(address) == "token"
        started = " ".join(word for one in psutil.Process(process.pid).children() for word in one.cmdline())
        assert f"{ray_guard.private_folder()}/session_" in started
    assert stat.S_IMODE(ray_guard.private_folder().parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / ".ray" / "auth_token").stat().st_mode) == 0o600


def test_a_cluster_that_asks_for_no_token_is_refused_unless_that_is_wished(home):
    with ray_of(OPEN, home) as (_, address):
        with pytest.raises(ConfigError, match=r"asks for no token.*--insecure"):
            ray_guard.guard_cluster(address, insecure=False)
        ray_guard.guard_cluster(address, insecure=True)


def test_what_is_no_ray_is_unreachable(home):
    with pytest.raises(Unreachable, match="not Ray"):
        ray_guard.guard_of("nothing")


def test_rays_token_is_made_once_for_its_owner_alone(home):
    ray_guard.ensure_token()
    path = home / ".ray" / "auth_token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    token = path.read_text()
    assert len(token) == 64
    ray_guard.ensure_token()
    assert path.read_text() == token
    assert [file.name for file in path.parent.iterdir()] == ["auth_token"]


# --- the pages of MLflow


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "mlflow.db").touch()
    return tmp_path


def test_the_pages_are_for_this_machine_alone(root):
    given = ui.arguments(root, "127.0.0.1", 5000, None)
    assert given[given.index("--host") + 1] == "127.0.0.1"
    names = given[given.index("--allowed-hosts") + 1]
    assert "*" not in names.split(",")
    assert "192.168" not in names  # MLflow's own default lets every private network in


@pytest.mark.parametrize(("names", "password"), [(None, "x" * 12), ("*", "x" * 12), ("a:*", "x" * 12), ("a", "short")])
def test_another_host_needs_names_and_a_password(root, monkeypatch, names, password):
    monkeypatch.setenv(ui.PASSWORD, password)
    monkeypatch.delenv(ui.AUTH_CONFIG, raising=False)
    with pytest.raises(ConfigError, match=r"HOST is 0\.0\.0\.0, which others reach"):
        ui.arguments(root, "0.0.0.0", 5000, names)


@pytest.mark.slow
def test_the_pages_server_listens_on_the_loopback_address_alone_and_refuses_another_hosts_name(tmp_path):
    import http.client
    import socket

    from orchestrator.tracking.store import open_client, store_uri

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


# --- folders


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sweep's folder with one adapter, closed to others."""
    folder = sweep_folder("t", tmp_path)
    save(make(), folder)
    Ledger(folder / "ledger.db").close()
    (folder / "adapters" / "k").mkdir(parents=True)
    (folder / "adapters" / "k" / "adapter_model.safetensors").touch()
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return folder


PLACES = ("", "ledger.db", "settings.json", "adapters", "adapters/k/adapter_model.safetensors", "..", "../..")


@pytest.mark.parametrize("bits", [0o020, 0o002])
@pytest.mark.parametrize("place", PLACES)
def test_a_folder_that_others_can_write_is_not_resumed(folder, tmp_path, place, bits):
    refuse_shared(folder, tmp_path)
    path = folder / place
    path.chmod(stat.S_IMODE(path.stat().st_mode) | bits)
    with pytest.raises(ConfigError, match=r"can be written by others.*chmod -R go-w"):
        refuse_shared(folder, tmp_path)


def test_a_folder_that_is_a_link_is_not_resumed(folder, tmp_path):
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a link"):
        refuse_shared(folder, tmp_path)


@pytest.mark.parametrize("place", ["ledger.db", "settings.json", "adapters", "adapters/k"])
def test_a_folder_with_a_link_in_it_is_not_resumed(folder, tmp_path, place):
    (folder / place).rename(tmp_path / "elsewhere")
    (folder / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=f"{place} is a link"):
        refuse_shared(folder, tmp_path)


def test_the_folder_of_all_state_may_be_a_link_to_one_that_is_closed_to_others(folder, tmp_path):
    (tmp_path / "work").mkdir()
    root = tmp_path / "work" / "mlflow_runs"
    root.symlink_to(tmp_path)
    refuse_shared(sweep_folder("t", root), root)
    tmp_path.chmod(0o770)
    with pytest.raises(ConfigError, match="can be written by others"):
        refuse_shared(sweep_folder("t", root), root)


def test_a_file_that_goes_away_meanwhile_is_no_fault(folder, tmp_path, monkeypatch):
    walked = [(str(folder), ["ray"], ["ledger.db-wal"])]
    monkeypatch.setattr(os, "walk", lambda place: iter(walked))
    refuse_shared(folder, tmp_path)


READERS = {
    "resume": ["resume", "t"],
    "status": ["status", "t"],
    "best": ["best"],
    "report": ["report"],
    "report of two": ["report", "t", "t"],
    "card": ["card", "t"],
    "export": ["export", "t", "out"],
    "sync": ["sync", "t"],
    "verify": ["verify", "t"],
    "repair": ["verify", "t", "--repair"],
    "ui --optuna": ["ui", "t", "--optuna"],
    "run --warm-start": ["run", "--warm-start", "t"],
}


@pytest.mark.parametrize("how", ["link", "writable"])
@pytest.mark.parametrize("words", READERS.values(), ids=list(READERS))
def test_no_command_reads_a_sweep_that_others_can_write_or_that_is_a_link(words, how, folder, tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    shutil.copytree(tmp_path / "sweeps", tmp_path / "cwd" / "mlflow_runs" / "sweeps")
    monkeypatch.chdir(tmp_path / "cwd")
    theirs = Path("mlflow_runs/sweeps/t")
    if how == "link":
        theirs.rename("elsewhere")
        theirs.symlink_to(Path("elsewhere").resolve())
    else:
        (theirs / "ledger.db").chmod(0o666)
    before = sorted(Path().rglob("*"))
    with pytest.raises(ConfigError, match=r"is a link|can be written by others"):
        app.app(words, standalone_mode=False)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_of_another_user_is_not_resumed(folder, tmp_path):
    os.chown(folder / "ledger.db", 12345, -1)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        refuse_shared(folder, tmp_path)


def test_the_command_refuses_to_resume_a_folder_that_others_can_write(folder, tmp_path):
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    shutil.copytree(tmp_path / "sweeps", cwd / "mlflow_runs" / "sweeps")
    (cwd / "mlflow_runs" / "sweeps" / "t").chmod(0o777)
    done = called("resume", "t", cwd=cwd)
    assert done.code == 2
    assert "can be written by others" in done.err
    assert "Traceback" not in done.err


@given(st.text(alphabet="./\\aA\n\0~ %", min_size=1, max_size=12) | st.sampled_from(["..", "a/../../b", "/etc", "a\n"]))
def test_a_sweeps_name_never_leads_out_of_its_folder(name):
    root = Path("/state")
    try:
        folder = sweep_folder(name, root)
    except ConfigError:
        return
    assert folder.parent == root / "sweeps"
    assert folder.name not in ("", ".", "..")
    assert "\n" not in name


def test_a_key_that_is_a_path_leads_to_no_adapter(tmp_path):
    (tmp_path / "adapters").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / adapter_store.WEIGHTS).touch()
    for key in ("../outside", str(tmp_path / "outside"), ".."):
        with pytest.raises(ValueError, match="no trial has the key"):
            adapter_store.read(tmp_path / "adapters", key)
        with pytest.raises(ValueError, match="no trial has the key"):
            adapter_store.write(tmp_path / "adapters", key, {adapter_store.WEIGHTS: b""})


# --- secrets


@given(
    st.text(alphabet="abcdef0123456789", min_size=6, max_size=40),
    st.sampled_from(["HF_TOKEN", "X_PASSWORD", "A_SECRET"]),
)
def test_a_secret_of_the_environment_is_cut_out_of_what_others_say(secret, name):
    told = redacted(f"401: Bearer {secret} at http://{secret}@host/", environment={name: secret})
    assert secret not in told
    assert HIDDEN in told


def test_an_address_is_cut_out_with_its_host():
    told = redacted(
        "HTTPConnectionPool(host='ml.corp.example', port=5000)", "http://ml.corp.example:5000", environment={}
    )
    assert told == f"HTTPConnectionPool({HIDDEN}, {HIDDEN})"


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
    assert run.err.rstrip().endswith("-m orchestrator.cli sync a")


def test_no_secret_and_no_tracking_address_stands_in_logs_ledger_mlflow_or_artifacts(swept):
    cwd, logs, done = swept
    assert CANARY not in "".join(part for one in done for part in (one.out, one.err))
    files = [path for place in (cwd, logs) for path in place.rglob("*") if path.is_file()]
    assert {"mlflow.db", "ledger.db", "raylet.out", "report.html"} <= {path.name for path in files}
    assert [str(path) for path in files if CANARY.encode() in path.read_bytes()] == []


def test_what_a_sweep_makes_others_cannot_write(swept):
    made = [swept[0] / "mlflow_runs", *(swept[0] / "mlflow_runs").rglob("*")]
    assert [str(path) for path in made if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)] == []


# --- pages


def hostile_report(folder: Path) -> Path:
    """The report of a sweep whose every text from outside is markup."""
    workload = asdict(WORKLOAD) | {"data": EVIL, "base_model": EVIL}
    settings = make(base_model=EVIL, data=EVIL)
    trials = [trial(0, state="failed", reason=f"row 3: instruction {EVIL}", environment={"device": EVIL})]
    counts = {"read": 1, "train": 1, f"dropped: {EVIL}": 1}
    found = report.report_of(settings, trials, {"workload": workload, "data_counts": counts}, lambda config: None)
    folder.mkdir(parents=True, exist_ok=True)
    return outputs.write_report(found, folder)[1]


def test_markup_in_data_rows_does_not_run_in_the_report(tmp_path):
    """Opened in Chromium with the page's own policy, and again without it."""
    from playwright.sync_api import sync_playwright

    browser_path = shutil.which("chromium") or shutil.which("chromium-browser")
    page_file = hostile_report(tmp_path)
    text = page_file.read_text(encoding="utf-8")
    assert "Content-Security-Policy" in text
    assert "window.ran" in text  # it is shown
    if browser_path is None:
        pytest.skip("no Chromium on this machine")
    unguarded = tmp_path / "unguarded.html"
    unguarded.write_text(text.replace("Content-Security-Policy", "x"), encoding="utf-8")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        try:
            for file in (page_file, unguarded):
                page = browser.new_page()
                page.goto(file.as_uri())
                assert page.evaluate("window.ran") is None
                assert (
                    page.evaluate("document.querySelectorAll('script, svg, iframe, [onerror], [onload]').length") == 0
                )
                assert "window.ran = 1" in page.inner_text("body")
            page.set_content(EVIL)  # the same words, as markup, would have run
            page.wait_for_function("window.ran !== undefined")
        finally:
            browser.close()


def test_a_card_shows_markup_from_outside_as_words(tmp_path):
    from orchestrator.report.card import card_of

    workload = asdict(WORKLOAD) | {"data": EVIL, "base_model": EVIL}
    trials = [trial(0, state="failed", reason=EVIL)]
    found = report.report_of(make(base_model=EVIL, data=EVIL), trials, {"workload": workload}, lambda config: None)
    body = str(card_of(found)).partition("---\n")[2].partition("---\n")[2]
    assert "window.ran" in body
    assert "<script" not in body.replace("\\<script", "")


# --- code


OWN_CODE = """
import transformers
from pathlib import Path

Path({mark!r}).touch()


class Config(transformers.GPT2Config):
    model_type = {model_type!r}


class Model(transformers.GPT2LMHeadModel):
    config_class = Config


class Tokenizer(transformers.PreTrainedTokenizerFast):
    pass
"""


def with_code(folder: Path, model_type: str, *naming: str) -> tuple[Path, Path]:
    """A base with Python beside it that its files name; and the mark that this code leaves where it runs."""
    mark = folder.parent / f"{folder.name}-ran"
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(demo.FOLDER / name, folder)
    named = {
        "config.json": {"AutoConfig": "own_code.Config", "AutoModelForCausalLM": "own_code.Model"},
        "tokenizer_config.json": {"AutoTokenizer": [None, "own_code.Tokenizer"]},
    }
    for name, classes in named.items():
        values = json.loads((demo.FOLDER / name).read_text())
        values |= {"model_type": model_type} if name == "config.json" else {"tokenizer_class": "Tokenizer"}
        values |= {"auto_map": classes} if name in naming else {}
        (folder / name).write_text(json.dumps(values))
    code = OWN_CODE.format(mark=str(mark), model_type=model_type)
    (folder / "own_code.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    return folder, mark


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
from trainables.data import alpaca
from trainables.data import tokens as data
from trainables.models import base_model
from trainables.values.config import Workload

here = Path.cwd()
rows = alpaca.read_rows("demo")
for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(demo.FOLDER / name, here)


def run(script):
    (here / "generate.py").write_text(script)
    sys.argv = ["generate.py", "Name three colours."]
    exec(compile(script, "generate.py", "exec"), {"__file__": str(here / "generate.py")})


def readers(base):
    kept = {"base_fingerprint": "", "weights": "pretrained", "data": "", "data_folder": "", "data_digest": ""}
    workload = Workload(base_model=str(base), base_folder=str(base), compute_dtype="float32", **kept)
    yield "tokens", lambda: data.tokenize(rows, base, here)
    yield "16bit", lambda: base_model.load(workload, "16bit", "cpu")
    yield "nf4", lambda: base_model.load(workload, "nf4", "cpu")
    yield "drawn", lambda: base_model._draw_weights(base, here)
    yield "bias", lambda: bias.gaps(base_model.load(workload, "16bit", "cpu"), base)
    yield "script", lambda: run(export.script("16bit", workload, merged=False))


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


def test_code_beside_a_gpt2_is_ignored_which_is_said_once(tmp_path, caplog):
    base, mark = with_code(tmp_path / "base", "gpt2", "config.json")
    for _ in range(2):
        assert base_model.find(str(base), tmp_path).folder == base
    (line,) = caplog.messages
    assert str(base) in line
    assert "config.json names (auto_map) is ignored" in line
    assert not mark.exists()


def test_pickled_weights_are_not_read(tmp_path):
    base, mark = with_code(tmp_path / "base", "gpt2")
    (base / "model.safetensors").rename(tmp_path / "kept")

    class Evil:
        def __reduce__(self):
            return Path.touch, (mark,)

    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConfigError, match=r"no \*\.safetensors"):
        base_model.find(str(base), tmp_path)
    workload = replace(WORKLOAD, base_folder=str(base))
    with pytest.raises(OSError, match=r"model\.safetensors"):
        base_model.load(workload, "16bit", "cpu")
    assert not mark.exists()
