"""What a sweep's run in MLflow shows while trials come in; a sweep without Ray, real MLflow on a temporary SQLite."""

import time
from contextlib import closing
from dataclasses import asdict, replace

import numpy as np
import pytest

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.figures import gallery as figures
from orchestrator.ledger import Ledger
from orchestrator.settings import sweep_folder
from orchestrator.tracking import live as tracking_live
from orchestrator.tracking.client import open_client
from orchestrator.tracking.contents import GROWTH, growth
from orchestrator.tracking.ending import write_files
from orchestrator.tracking.live import Live
from orchestrator.tracking.projection import Tracker
from orchestrator.tracking.store import store_uri
from tests.support.stores import place_store
from tests.support.sweeps import WORKLOAD, Desk, completes, make
from tests.support.swept import swept


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("live") / "mlflow_runs"
    place_store(root)
    settings, result = swept(root)
    return root, settings, result


def of(points, name: str):
    return [(step, value) for key, value, _, step in points if key == name]


def test_hypervolume_and_device_time_have_a_point_after_each_trial_and_never_fall(finished):
    _, _, result = finished
    points = growth(result, final=True)
    n_ended = sum(trial.ended_at is not None for trial in result.trials)
    for name in GROWTH:
        steps, values = zip(*of(points, name), strict=True)
        assert list(steps) == list(range(1, n_ended + 1))
        assert np.all(np.diff(values) >= 0)
    assert of(points, "hypervolume")[-1][1] == pytest.approx(result.front.hypervolume)
    assert of(points, "train_device_seconds")[-1][1] == sum(trial.train_seconds for trial in result.trials)


def test_a_hypervolume_that_can_still_change_is_not_written_yet(finished):
    _, _, result = finished
    assert not of(growth(replace(result, facts={}), final=False), "hypervolume")
    waiting = next(t for t in result.trials if t.config.precision == "nf4" and t.origin == "search")
    unlike = replace(result.entries[waiting.number], result=replace(waiting, similarity=None))
    then = replace(result, entries=tuple(unlike if e.result is waiting else e for e in result.entries))
    before = sum(t.ended_at < waiting.ended_at for t in then.trials)
    assert len(of(growth(then, final=False), "hypervolume")) == before
    assert len(of(growth(then, final=True), "hypervolume")) > before


def test_points_written_while_trials_come_in_are_those_of_the_finished_sweep(tmp_path):
    settings = make()
    place_store(tmp_path)
    folder = sweep_folder(settings.name, tmp_path)
    desk = Desk(folder, settings)
    for name, value in {"id": "5" * 32, "created_at": 1e9, "workload": asdict(WORKLOAD)}.items():
        desk.ledger.set_fact(name, value)
    tracker = Tracker(settings, desk.ledger, tmp_path)
    while not desk.driver.finished:
        trial_id = desk.take(lambda task: completes(task, loss=2 - task.config.rank / 10))
        if trial_id:
            desk.end(trial_id)
        tracker.sync()
    tracker.sync(final=True)
    result = SweepSnapshot.of(settings, desk.ledger)
    expected = growth(result, final=True)
    client, _ = open_client(store_uri(tmp_path), tmp_path)
    for name in GROWTH:
        found = {(m.step, m.value) for m in client.get_metric_history(tracker.run_id, name)}
        assert found == set(of(expected, name))
    desk.ledger.close()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_figures_are_drawn_again_only_when_a_trial_completed_and_the_last_time_is_a_while_ago(finished):
    root, _, result = finished
    client, experiment_id = open_client(store_uri(root), root)
    run_id = client.create_run(experiment_id).info.run_id
    clock = Clock()
    live = Live(client, run_id, clock)
    fewer = replace(result, entries=result.entries[:-1])
    assert live.update(fewer)
    clock.now = tracking_live.FIGURES_SECONDS - 1
    assert not live.update(result)  # too soon
    clock.now += 2
    assert live.update(result)
    clock.now += 1000
    assert not live.update(result)  # nothing new
    assert live.has_front
    files = {file.path for file in client.list_artifacts(run_id)}
    assert files == {figures.PAGE, figures.FOLDER}
    assert [file.path for file in client.list_artifacts(run_id, figures.FOLDER)] == ["figures/front.png"]
    client.set_terminated(run_id)


def test_the_machine_is_watched_while_the_run_runs(finished):
    root, _, _ = finished
    client, experiment_id = open_client(store_uri(root), root)
    run_id = client.create_run(experiment_id).info.run_id
    monitor = tracking_live.machine_monitor(store_uri(root), run_id, seconds=0.2)
    end = time.monotonic() + 60
    while "system/cpu_utilization_percentage" not in client.get_run(run_id).data.metrics:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert client.get_run(run_id).data.metrics["system/system_memory_usage_megabytes"] > 0
    monitor.finish()
    client.set_terminated(run_id)


def test_the_description_begins_with_links_then_the_answer_the_budgets_and_the_picture(finished):
    root, settings, result = finished
    with closing(Ledger(sweep_folder("t", root) / "ledger.db")) as ledger:
        tracker = Tracker(settings, ledger, root)
        tracker.finish(result, write_files(result, ledger), interrupted=False)
    client, _ = open_client(store_uri(root), root)
    parent = client.get_run(tracker.run_id)
    note = parent.data.tags["mlflow.note.content"]
    run_id, experiment_id = parent.info.run_id, parent.info.experiment_id
    first, answer, budgets, *rest = note.split("\n\n")
    links, short = first.split("\n")
    assert (
        f"(#/experiments/{experiment_id}/runs/{run_id}/artifacts/figures.html?workflowType=machine_learning)" in links
    )
    assert short.startswith("**Answer: ")
    assert answer.startswith("Answer: ")
    assert budgets == "## Which rank for which memory"
    (picture,) = [part for part in rest if part.startswith("![")]
    assert picture.endswith(f"(get-artifact?path=figures%2Ffront.png&run_uuid={run_id})")
    assert "figures/front.png" in [file.path for file in client.list_artifacts(run_id, "figures")]
