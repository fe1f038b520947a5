"""A sweep in optuna-dashboard: its study is what the ledger holds, and the dashboard serves it."""

import json
import os
import signal
import socket
import time
import urllib.request
from dataclasses import asdict
from subprocess import Popen

import optuna
import pytest
from optuna.trial import TrialState

from orchestrator.analysis.front import front_of, objective_value
from orchestrator.ledger import Ledger
from orchestrator.objectives import DEFAULT
from orchestrator.search import study as study_file
from orchestrator.settings import sweep_folder
from orchestrator.settings.stored import save
from tests.support.sweeps import COMMAND, TPE, WORKLOAD, Desk, breaks, completes, environment, make, space


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep with completed, pruned and broken trials, and what its finalists needed."""
    cwd = tmp_path_factory.mktemp("dashboard")
    settings = make(space(TPE), name="d", n_trials=8, objectives=(*DEFAULT, "embedding_cosine"))
    folder = sweep_folder("d", cwd / "mlflow_runs")
    save(settings, folder)
    desk = Desk(folder, settings)
    desk.ledger.set_fact("workload", asdict(WORKLOAD))
    desk.do(breaks)
    desk.do(completes, stop=True)
    desk.finish(lambda task: completes(task, loss=2 - task.config.rank / 10))
    entries = desk.ledger.entries()
    desk.ledger.close()
    return cwd, settings, entries


def test_the_study_has_every_trial_that_ended_with_its_figures_in_their_own_units(swept, tmp_path):
    _, settings, entries = swept
    study = study_file.write(settings, entries, tmp_path / "o.db")
    found = {trial.user_attrs["key"]: trial for trial in study.trials}
    candidates = {e.result.key: e for e in entries if e.result.is_of_search}
    assert found.keys() == candidates.keys()
    assert study.metric_names == list(settings.objectives)
    assert [direction.name for direction in study.directions] == ["MINIMIZE"] * 3 + ["MAXIMIZE"]
    states = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "diverged": TrialState.FAIL}
    assert {entry.result.state for entry in candidates.values()} == set(states)
    for key, entry in candidates.items():
        trial, result = found[key], entry.result
        assert trial.state == states[result.state]
        assert trial.params == dict(entry.params)
        if result.state == "completed":
            assert trial.values == [objective_value(result, objective) for objective in settings.objectives]
            assert trial.datetime_complete.timestamp() == pytest.approx(result.ended_at, abs=1e-3)


def test_optunas_own_front_is_the_sweeps(swept, tmp_path):
    _, settings, entries = swept
    trials = [entry.result for entry in entries]
    study = study_file.write(settings, entries, tmp_path / "o.db")
    assert {trial.user_attrs["key"] for trial in study.best_trials} == front_of(trials, settings).keys


def test_writing_again_replaces_the_study(swept, tmp_path):
    _, settings, entries = swept
    study_file.write(settings, entries, tmp_path / "o.db")
    study_file.write(settings, entries[:2], tmp_path / "o.db")
    (summary,) = optuna.get_all_study_summaries(f"sqlite:///{tmp_path / 'o.db'}")
    assert summary.n_trials == 2


def test_the_command_serves_the_newest_sweep_on_the_loopback_address_and_leaves_its_ledger(swept):
    cwd, _, entries = swept
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = cwd / "said"
    with said.open("w") as out:
        command = [*COMMAND, "ui", "--optuna", "--port", str(port)]
        server = Popen(command, cwd=cwd, env=environment(), stdout=out, stderr=out, start_new_session=True)
    try:
        studies = asked(f"http://127.0.0.1:{port}/api/studies", said)["study_summaries"]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)
    assert [study["study_name"] for study in studies] == ["d"]
    assert f"http://127.0.0.1:{port}/dashboard/studies/{studies[0]['study_id']}" in said.read_text()
    ledger = Ledger(sweep_folder("d", cwd / "mlflow_runs") / "ledger.db", read_only=True)
    assert ledger.entries() == entries
    ledger.close()


def asked(address: str, said) -> dict:
    end = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return json.load(answer)
        except OSError:
            assert time.monotonic() < end, said.read_text()
            time.sleep(0.5)
