"""Nobody is let in, and nothing gets out: ports, tokens, folders, secrets, and pages that data rows are shown on."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger import Ledger
from orchestrator.report import content as report
from orchestrator.report import outputs
from orchestrator.security import ray_guard
from orchestrator.security.folder_access import refuse_shared
from orchestrator.security.redaction import HIDDEN, redacted
from orchestrator.settings import make as make_settings
from orchestrator.settings import save, sweep_folder
from orchestrator.tracking import ui
from orchestrator.workers import adapter_store
from tests.sweeps import (
    CANARIES,
    CANARY,
    GRID,
    PRETEND,
    REPO,
    WORKLOAD,
    Finished,
    command,
    environment,
    make,
    space,
    start,
    trial,
)
from trainables.errors import ConfigError, Unreachable

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
    done = command("resume", "t", cwd=cwd)
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


@pytest.mark.parametrize(
    "address", ["http://me:pass@host", "https://me@host", "http://host?token=abc", "postgresql://me:pass@host/db"]
)
def test_a_tracking_address_with_a_secret_in_it_is_refused_without_repeating_it(address):
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_TOKEN") as found:
        make_settings(
            space=space(GRID), name="t", n_trials=1, base_model="demo", data="demo", device="cpu", tracking_uri=address
        )
    assert "pass" not in str(found.value).replace("password", "").replace("MLFLOW_TRACKING_PASSWORD", "")
    assert address not in str(found.value)


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
    assert run.err.rstrip().endswith("complete it with: qlora-sweep sync a")


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


def test_no_module_reads_a_pickle_or_runs_a_repos_code():
    """But a trial's error, in a folder of this user's own; safetensors is asked for where weights are loaded."""
    words = (
        "pickle.load",
        "torch.load",
        "joblib",
        "trust_remote_code",
        "weights_only=False",
        "shell=True",
    )
    folders = [REPO / name for name in ("trainables", "search_spaces", "orchestrator")]
    sources = {path: path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py")}
    assert len(sources) > 50
    found = [(path.name, word) for path, text in sources.items() for word in words if word in text]
    assert found in ([], [("faults.py", "pickle.load")])
    loads = [text for text in sources.values() if "AutoModelForCausalLM.from_pretrained(\n" in text]
    assert loads
    assert all("use_safetensors=True" in text for text in loads)
