"""Nobody is let in, and nothing gets out: tokens, folders, secrets, markup and code from outside."""

import os
import pickle
import shutil
import stat
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.group import commands
from orchestrator.ledger import Ledger, adapter_store
from orchestrator.report import content as report
from orchestrator.security import ray_guard
from orchestrator.security.folder_access import refuse_shared
from orchestrator.security.redaction import HIDDEN, redacted
from orchestrator.settings import sweep_folder
from orchestrator.settings.stored import save
from orchestrator.tracking import ui
from tests.support.hostile import EVIL, hostile_report, with_code
from tests.support.in_process import called
from tests.support.sweeps import (
    WORKLOAD,
    make,
    snapshot,
    trial,
)
from trainables.models import base_model
from trainables.values.errors import ConfigError, Unreachable

# --- ports and tokens


def test_what_is_no_ray_is_unreachable(ray_home):
    with pytest.raises(Unreachable, match="not Ray"):
        ray_guard.guard_of("nothing")


def test_rays_token_is_made_once_for_its_owner_alone(ray_home):
    ray_guard.ensure_token()
    path = ray_home / ".ray" / "auth_token"
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
        commands(words, standalone_mode=False)
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


# --- pages


def test_a_report_shows_markup_from_outside_as_words(tmp_path):
    text = hostile_report(tmp_path).read_text(encoding="utf-8")
    assert "Content-Security-Policy" in text
    assert "window.ran = 1" in text
    assert not any(tag in text for tag in ("<script>window", "<img src=x", "<svg onload"))


def test_a_card_shows_markup_from_outside_as_words(tmp_path):
    from orchestrator.report.card import card_of

    workload = asdict(WORKLOAD) | {"data": EVIL, "base_model": EVIL}
    trials = [trial(0, state="failed", reason=EVIL)]
    found = report.report_of(
        snapshot(make(base_model=EVIL, data=EVIL), trials, {"workload": workload}), lambda config: None
    )
    body = str(card_of(found)).partition("---\n")[2].partition("---\n")[2]
    assert "window.ran" in body
    assert "<script" not in body.replace("\\<script", "")


# --- code


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
