"""Bad command lines and files: an exit code, the field by name, no traceback, at once."""

import errno
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import sleep

import pytest

from orchestrator import settings as settings_file
from orchestrator.cli.main import main
from orchestrator.ledger.ownership import owned
from orchestrator.settings import stored
from orchestrator.tracking import ui
from tests.support.bad_inputs import BAD_DATA, BAD_SETTINGS, BAD_SPACES, GOOD_ROW, space_text
from tests.support.in_process import called
from tests.support.sweeps import command, make
from trainables.values.errors import ConfigError

SOON_SECONDS = 60.0
"""For what takes some seconds, on a busy machine; a wait without a bound would be minutes."""


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_a_bad_setting_is_named_with_exit_code_2(case, tmp_path):
    arguments, words = BAD_SETTINGS[case]
    finished = called("run", *arguments, cwd=tmp_path)
    assert finished.code == 2, finished.err
    assert all(word in finished.err for word in words), finished.err
    assert "Traceback" not in finished.err
    assert not finished.out


@pytest.mark.parametrize("case", BAD_SPACES)
def test_a_bad_value_in_a_space_is_named_with_exit_code_2(case, tmp_path):
    changes, words = BAD_SPACES[case]
    (tmp_path / "mine.yaml").write_text(space_text(changes))
    finished = called("run", "--space", "mine.yaml", cwd=tmp_path)
    assert finished.code == 2, finished.err
    assert all(word in finished.err for word in words), finished.err
    assert "Traceback" not in finished.err


@pytest.mark.parametrize("name", BAD_DATA)
def test_a_bad_data_file_is_named_with_exit_code_3(name, tmp_path):
    content, words = BAD_DATA[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    finished = called("run", "--data", name, cwd=tmp_path)
    assert finished.code == 3, finished.err
    assert name in finished.err or "too few rows" in finished.err
    assert words in finished.err.replace(",", ""), finished.err
    assert "Traceback" not in finished.err


def test_an_unreachable_hub_ends_soon_and_says_how_to_give_a_folder(tmp_path):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path / "hf")}
    arguments = ("run", "--base-model", "some/model", "--data", "some/rows")
    finished = command(*arguments, cwd=tmp_path, timeout=SOON_SECONDS, **nowhere)
    assert finished.code == 5, finished.err
    assert "--data /path/to/rows.json" in finished.err
    assert "Traceback" not in finished.err


NO_GPU = ["--device", "cuda", "--data", "missing.json", "--base-model", "missing"]


@pytest.mark.parametrize("verb", ["run", "sensitivity"])
def test_a_gpu_that_is_not_there_is_said_before_the_data_and_leaves_nothing(verb, tmp_path):
    finished = called(verb, *NO_GPU, cwd=tmp_path)
    assert finished.code == 2, finished.err
    assert "--device is 'cuda', but there is no GPU here" in finished.err.splitlines()[0]
    assert len(finished.err.splitlines()) == 1
    assert not os.listdir(tmp_path)


def test_a_sweep_on_a_gpu_elsewhere_can_be_planned_and_resumed_only_where_one_is(tmp_path):
    assert called("run", "--device", "cuda", "--dry-run", cwd=tmp_path).code == 0
    stored.save(make(device="cuda"), settings_file.sweep_folder("t", tmp_path / "mlflow_runs"))
    resumed = called("resume", "t", cwd=tmp_path)
    assert resumed.code == 2, resumed.err
    assert "there is no GPU here" in resumed.err


REFUSED = {
    "bad rows": (3, ["--data", "missing.json"]),
    "a cluster that is away": (5, ["--address", "127.0.0.1:1", "--device", "cpu"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_start_leaves_no_folder_and_an_empty_one_as_it_was(case, tmp_path):
    code, arguments = REFUSED[case]
    assert called("run", "--name", "t", *arguments, cwd=tmp_path).code == code
    assert not os.listdir(tmp_path)
    (tmp_path / "mlflow_runs" / "sweeps" / "other").mkdir(parents=True)
    assert called("run", "--name", "t", *arguments, cwd=tmp_path).code == code
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["mlflow_runs", "sweeps", "other"]


def test_of_many_starts_that_end_in_a_refusal_one_at_a_time_holds_the_folder(tmp_path):
    folder, inside, most = tmp_path / "sweeps" / "t", [], []

    def start(_):
        with suppress(ConfigError), owned(folder):  # the error of the others is tested where two sweeps run
            inside.append(1)
            sleep(0.001)
            most.append(len(inside))
            inside.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(start, range(200)))
    assert set(most) == {1}
    assert not folder.exists()


def a_file(root):
    root.write_text("mine")


def a_link_to_nowhere(root):
    root.symlink_to("/nowhere")


def a_link_to_what_takes_no_folders(root):
    root.symlink_to("/proc")


def a_file_for_its_sweeps(root):
    root.mkdir()
    (root / "sweeps").write_text("mine")


@pytest.mark.parametrize(
    "place",
    [a_file, a_link_to_nowhere, a_link_to_what_takes_no_folders, a_file_for_its_sweeps],
    ids=lambda f: f.__name__,
)
def test_a_state_folder_that_nobody_can_write_is_one_line_with_exit_code_2(place, tmp_path):
    place(tmp_path / "mlflow_runs")
    finished = called("run", "--trials", "2", cwd=tmp_path)
    assert finished.code == 2, finished.err
    (error,) = [line for line in finished.err.splitlines() if line.startswith("error: ")]
    assert error == finished.err.splitlines()[-1]
    assert "mlflow_runs" in error
    assert "cannot be used" in error


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EROFS, 2), (errno.EACCES, 2), (errno.ENOSPC, 4), (errno.EDQUOT, 4)]
)
def test_a_path_that_cannot_be_written_is_named_by_every_command(number, code, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")

    def work():
        raise OSError(number, os.strerror(number), "report.md")

    with pytest.raises(SystemExit) as ended:
        main(work)
    assert ended.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert "report.md" in line


def test_a_fault_that_no_user_can_mend_keeps_its_traceback(monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    with pytest.raises(OSError, match="Bad file descriptor"):
        main(lambda: os.close(10_000))


def test_a_ray_that_does_not_start_is_told_in_one_line(tmp_path):
    too_long = tmp_path / ("x" * 100)  # for the sockets that Ray makes there
    finished = command("run", "--trials", "1", cwd=tmp_path, RAY_TMPDIR=str(too_long))
    assert finished.code == 5, finished.err
    assert "Ray did not start on this machine" in finished.err
    assert "Traceback" not in finished.err


def test_an_address_where_nothing_listens_is_unreachable(tmp_path):
    finished = called("run", "--address", "127.0.0.1:1", cwd=tmp_path)
    assert finished.code == 5, finished.err
    assert "127.0.0.1:1" in finished.err


@pytest.mark.parametrize("verb", ["resume", "status", "sync"])
def test_an_unknown_sweep_is_named(verb, tmp_path):
    finished = called(verb, "nothing", cwd=tmp_path)
    assert finished.code == 2
    assert "no sweep 'nothing'" in finished.err


def test_a_dry_run_says_the_first_configs_and_writes_nothing(tmp_path):
    finished = called("run", "--dry-run", "--json", "--trials", "3", cwd=tmp_path)
    assert finished.code == 0, finished.err
    assert len(finished.json["first_configs"]) == 3
    assert finished.json["settings"]["n_trials"] == 3
    assert not os.listdir(tmp_path)


def test_a_dry_run_refuses_the_name_of_another_sweep_as_the_run_does(tmp_path):
    folder = settings_file.sweep_folder("t", tmp_path / "mlflow_runs")
    folder.mkdir(parents=True)
    (folder / "ledger.db").touch()
    refused = [called("run", "--name", "t", *flags, cwd=tmp_path) for flags in ([], ["--dry-run"])]
    assert [one.code for one in refused] == [2, 2]
    assert refused[0].err.startswith("error: NAME: sweep 't' exists; choose another NAME, or go on with it")
    assert refused[0].err == refused[1].err
    assert not refused[1].out


def test_a_dry_run_says_what_makes_up_the_number_of_trials(tmp_path):
    lines = called("run", "--dry-run", "--trials", "3", cwd=tmp_path).out.splitlines()
    assert lines[1] == (
        "trials: 3 configs, the 16-bit baseline of each completed 4-bit one (at most 3), then finalists under other "
        "seeds (of each 4-bit one's baseline 2)"
    )


def test_a_dry_run_promises_no_more_configs_than_the_space_has_points(tmp_path):
    (tmp_path / "two.yaml").write_text(
        "method: tpe\nparameters:\n  rank: {values: [1, 2]}\n"
        "fixed: {precision: nf4, alpha: 8, targets: [attn.c_attn], learning_rate: 1.0e-3, max_steps: 4}\n"
    )
    finished = called("run", "--dry-run", "--space", "two.yaml", "--trials", "12", cwd=tmp_path)
    assert finished.code == 0, finished.err
    assert finished.out.splitlines()[1].startswith(
        "trials: 2 configs (all points of the space; 12 were asked for), the 16-bit baseline of each completed 4-bit "
        "one (at most 2), then"
    )


@pytest.mark.parametrize(("level", "word"), [(None, "--base-model: no"), ("1", "BASE_MODEL: no")])
def test_a_setting_is_named_as_it_was_given_as_a_flag_or_to_make(level, word, tmp_path):
    made = {"MAKELEVEL": level} if level else {}
    finished = called("run", "--base-model", ".", cwd=tmp_path, **made)
    assert finished.err.startswith(f"error: {word} config.json in "), finished.err


T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
IMPORTED = (
    *(sys.executable, "-c"),
    "import sys; from orchestrator.cli.main import main\n"
    "try: main()\nfinally: print({'ray', 'torch'} & set(sys.modules))",
)
"""The command, which then says what of these it has imported."""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--trials", "abc"), "--trials: must be a whole number, got 'abc'"),
        (("--trials=1.5",), "--trials: must be a whole number, got '1.5'"),
        (("--max-hours", "soon"), "--max-hours: must be a number, got 'soon'"),
        (("--max-hours", "-"), "--max-hours: must be a number, got '-'"),
    ],
    ids=str,
)
def test_what_is_no_number_is_said_with_what_was_given(words, said, tmp_path):
    refused = called("run", *words, cwd=tmp_path)
    assert (refused.code, refused.err.splitlines()) == (2, [f"error: {said}"])


@pytest.mark.parametrize("verb", [("run",), ("run", "--dry-run"), ("sensitivity",)], ids="-".join)
def test_a_base_of_another_architecture_is_refused_by_its_model_type_before_ray_or_torch_is_imported(verb, tmp_path):
    (tmp_path / "base").mkdir()
    for name, text in {"config.json": json.dumps(T5), "tokenizer.json": "{}", "model.safetensors": ""}.items():
        (tmp_path / "base" / name).write_text(text)
    refused = command(*verb, "--base-model", "base", cwd=tmp_path, program=IMPORTED)
    assert refused.code == 2, refused.err
    assert refused.err.startswith("error: --base-model: model_type 't5'"), refused.err
    assert "is an encoder-decoder" in refused.err
    assert refused.out == "set()\n"
    assert os.listdir(tmp_path) == ["base"]


def test_a_dry_run_reads_the_rows_of_a_file(tmp_path):
    (tmp_path / "few.json").write_text(json.dumps([GOOD_ROW]))
    finished = called("run", "--dry-run", "--data", "few.json", cwd=tmp_path)
    assert (finished.code, finished.out) == (3, ""), finished.err
    assert "too few rows" in finished.err


def test_a_dry_run_reads_rows_under_other_column_names_and_says_what_it_found(tmp_path):
    lines = ["question,answer", *(f"Count to {i}.,{i}" for i in range(400))]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    asked = ("run", "--dry-run", "--json", "--data", "rows.csv")
    unknown = called(*asked, cwd=tmp_path)
    assert (unknown.code, unknown.json["exit_code"]) == (3, 3), unknown.err
    advice = re.search(r"say (--columns \S+)", unknown.err)[1].split()
    assert advice == ["--columns", "instruction=question,output=answer"]
    finished = called(*asked, *advice, cwd=tmp_path)
    assert finished.code == 0, finished.err
    assert "data rows.csv: 400 rows with Alpaca's fields" in finished.err
    assert json.loads(finished.out)["settings"]["columns"] == advice[1]


def test_a_dry_run_says_in_one_line_what_only_the_hub_could_tell(tmp_path):
    finished = command("run", "--dry-run", "--base-model", "some/model", cwd=tmp_path)
    assert finished.code == 0, finished.err
    (line,) = [line for line in finished.err.splitlines() if "not checked" in line]
    assert "base model some/model and data tatsu-lab/alpaca" in line


def test_without_a_gpu_one_line_says_that_this_is_the_demo_and_what_a_gpu_would_run(tmp_path):
    finished = called("run", "--dry-run", cwd=tmp_path)
    (line,) = [line for line in finished.err.splitlines() if "this is the demo" in line]
    assert "GPT-2 Medium on Alpaca" in line
    assert "32 trials of 200 steps" in line


@pytest.fixture
def busy() -> Iterator[int]:
    """A port of this machine that something listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("port", "said"), [("0", "got 0"), ("70000", "got 70000"), ("-1", "got -1"), ("busy", "in use")]
)
@pytest.mark.parametrize("pages", ["mlflow", "optuna"])
def test_a_port_that_nothing_can_listen_on_is_named_before_the_server_begins(pages, port, said, busy, tmp_path):
    stored.save(make(), settings_file.sweep_folder("t", tmp_path / "mlflow_runs"))
    (tmp_path / "mlflow_runs" / "mlflow.db").touch()
    which = ["t", "--optuna"] if pages == "optuna" else []
    finished = called("ui", *which, "--port", port.replace("busy", str(busy)), cwd=tmp_path)
    assert finished.code == 2, finished.err
    (line,) = finished.err.splitlines()
    assert line.startswith("error: --port")
    assert said in line


def test_a_port_that_is_free_again_is_not_refused(busy):
    with pytest.raises(ConfigError, match=f"127.0.0.1:{busy} .*choose another PORT"):
        ui.refuse_port("127.0.0.1", busy)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as caller:
        free = server.getsockname()[1]
        server.accept()[0].close()  # the server's end is closed first, so its address waits for a minute
        assert not caller.recv(1)
    ui.refuse_port("127.0.0.1", free)
    ui.refuse_port("localhost", free)


def test_a_host_that_is_no_address_is_named():
    with pytest.raises(ConfigError, match="HOST: 'no such host' is no address"):
        ui.refuse_port("no such host", 5000)


def test_over_ssh_ui_says_how_to_reach_its_pages_from_where_one_sits():
    there = {"SSH_CONNECTION": "10.0.0.9 51234 10.0.0.2 22", "USER": "ann"}
    line = ui.from_elsewhere(there, "127.0.0.1", 5001)
    assert "`ssh -L 5001:127.0.0.1:5001 ann@10.0.0.2`" in line
    assert ui.from_elsewhere({"USER": "ann"}, "127.0.0.1", 5001) is None
    assert ui.from_elsewhere(there, "0.0.0.0", 5001) is None


def test_on_windows_the_program_names_wsl_before_it_imports_what_is_not_there(tmp_path):
    code = (
        "import sys, subprocess, orchestrator.cli.main as program\n"
        "assert not {'orchestrator.ledger.ownership', 'ray', 'torch'} & set(sys.modules)\n"
        "sys.platform = 'win32'\nprogram.main()"
    )
    refused = command(cwd=tmp_path, program=(sys.executable, "-c", code))
    assert refused.code == 2, refused.err
    assert "WSL" in refused.err


def test_ui_without_a_store_says_what_to_do(tmp_path):
    finished = called("ui", cwd=tmp_path)
    assert finished.code == 2
    assert "run a sweep first" in finished.err
