"""What --json prints: one object, as the printed schema says, errors included."""

import json
from dataclasses import asdict

import pytest
from jsonschema import Draft202012Validator

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.api.published import fault_of
from orchestrator.cli import results
from orchestrator.cli.main import main
from orchestrator.cli.progress import print_result
from orchestrator.settings import stored
from tests.support.in_process import called
from tests.support.stores import place_store
from tests.support.sweeps import TPE, WORKLOAD, Desk, make
from trainables.values.errors import Interrupted, Unreachable

SCHEMA = json.loads(json.dumps(results.schema()))
POINT = ("--precision", "nf4", "--loop", "lean", "--max-length-tokens", "128")


def assert_is(command: str, value: dict) -> None:
    """A value is what the schema says of a command, and has no key that the schema keeps to itself."""
    Draft202012Validator.check_schema(SCHEMA)
    definition = SCHEMA["$defs"][command]
    Draft202012Validator({**definition, "$defs": SCHEMA["$defs"]}).validate(value)
    Draft202012Validator(SCHEMA).validate(value)
    kinds = [SCHEMA["$defs"][kind["$ref"].split("/")[-1]] for kind in definition.get("anyOf", ())] or [definition]
    assert any(value.keys() - {"schema_version"} <= kind["properties"].keys() for kind in kinds), value.keys()
    assert value["schema_version"] == results.SCHEMA_VERSION


@pytest.fixture
def desk(tmp_path):
    """A sweep that has ended under tmp_path."""
    made = Desk(tmp_path / "mlflow_runs/sweeps/t", make(TPE, name="t", n_trials=3))
    stored.save(made.settings, made.folder)
    made.finish()
    return made


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("status", ("status", "t")),
        ("best", ("best", "t")),
        ("report", ("report", "t")),
        ("report A B", ("report", "t", "t")),
        ("verify", ("verify", "t")),
        ("run --dry-run", ("run", "--dry-run")),
        ("fit", ("fit", "gpt2-xl", *POINT)),
        ("fit", ("fit", "gpt2-xl")),
        ("list", ("list",)),
        ("delete", ("delete", "t", "--yes")),
        ("init", ("init", "mine")),
        ("card", ("card", "t")),
    ],
)
def test_what_a_command_prints_is_what_the_schema_says(command, words, desk, tmp_path):
    assert_is(command, called(*words, "--json", cwd=tmp_path).json)


def test_what_a_sweep_prints_at_its_end_is_what_the_schema_says_whether_it_came_to_something_or_not(desk, capsys):
    desk.ledger.set_fact("workload", asdict(WORKLOAD))
    snapshot = SweepSnapshot.of(desk.settings, desk.ledger)
    for fault in (None, Interrupted("go on with: resume t")):
        capsys.readouterr()
        print_result(snapshot, None, as_json=True, fault=fault)
        printed = json.loads(capsys.readouterr().out)
        assert_is("run", printed)
        assert printed["exit_code"] == (fault.exit_code if fault else 0)
    assert printed["error"] == {"kind": "Interrupted", "message": "interrupted; go on with: resume t"}
    assert fault_of(snapshot) is None


def test_answers_print_what_the_schema_says(desk, tmp_path):
    desk.ledger.set_fact("workload", asdict(WORKLOAD))
    assert_is("answers", called("answers", "t", "--json", cwd=tmp_path).json)


def test_sync_prints_the_run_and_nothing_else(desk, tmp_path):
    place_store(tmp_path / "mlflow_runs")
    for name, value in {"id": "5" * 32, "created_at": 1.0, "workload": asdict(WORKLOAD)}.items():
        desk.ledger.set_fact(name, value)
    printed = called("sync", "t", "--json", cwd=tmp_path).json
    assert_is("sync", printed)
    assert printed["mlflow_run"] == called("sync", "t", cwd=tmp_path).out.strip()


@pytest.mark.parametrize(
    ("words", "kind", "code", "said"),
    [
        (("run", "--space", "paretoo"), "ConfigError", 2, "did you mean 'pareto'"),
        (("run", "--data", "missing.json"), "DataError", 3, "missing.json"),
        (("run", "--address", "127.0.0.1:1"), "Unreachable", 5, "127.0.0.1:1"),
        (("status", "nothing"), "ConfigError", 2, "no sweep 'nothing'"),
        (("rnu",), "UsageError", 2, "Did you mean 'run'"),
        (("run", "--trials", "many"), "UsageError", 2, "--trials: "),
        (("run", "--no-such-flag"), "UsageError", 2, "--no-such-flag"),
    ],
)
def test_an_error_is_one_line_of_one_form_and_with_json_an_object_too(words, kind, code, said, tmp_path):
    plain, asked = called(*words, cwd=tmp_path), called(*words, "--json", cwd=tmp_path)
    assert (plain.code, plain.out) == (code, "")
    for finished in (plain, asked):
        assert finished.err.splitlines()[-1].startswith("error: ")
        assert said in finished.err.splitlines()[-1]
    assert_is("error", asked.json)
    assert asked.json["error"] == {"kind": kind, "message": asked.err.splitlines()[-1].removeprefix("error: ")}
    assert asked.code == asked.json["exit_code"] == code


def test_what_the_disk_refuses_is_an_object_too(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["qlora-sweep", "status", "--json"])
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")

    def work():
        raise OSError(28, "No space left on device", "ledger.db")

    with pytest.raises(SystemExit) as end:
        main(work)
    printed = json.loads(capsys.readouterr().out)
    assert_is("error", printed)
    assert printed["error"]["kind"] == "DiskFull"
    assert printed["exit_code"] == end.value.code == 4


def test_every_error_of_ours_keeps_its_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["qlora-sweep"])
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")

    def work():
        raise Unreachable("nobody answers")

    with pytest.raises(SystemExit) as end:
        main(work)
    assert end.value.code == 5
    assert capsys.readouterr() == ("", "error: nobody answers\n")


def test_the_printed_schema_is_that_of_the_program(tmp_path):
    assert called("schema", cwd=tmp_path).json == SCHEMA
