"""What a sweep does now, by name, from its first trial's start until all is written."""

from contextlib import closing
from dataclasses import replace
from itertools import groupby
from types import SimpleNamespace

import pytest

from orchestrator.analysis.moment import WRITING, WRITING_SECONDS, Moment
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.analysis.status import status_of
from orchestrator.cli.status_text import counted_line
from orchestrator.ledger import Ledger
from orchestrator.settings import sweep_folder
from orchestrator.tracking.ending import end
from orchestrator.tracking.publishing import publish
from tests.support.sweeps import GRID, TPE, Desk, completes, cost, evaluated_on_test, make, measurement, trial
from tests.support.swept import swept
from trainables.values.config import TrialConfig

STARTING = "starting workers and first trials"


def status_in(ledger, settings, now: float = 1e10):
    return SweepSnapshot.of(settings, ledger).status(now=now)


def test_tasks_of_a_sweep_pass_through_the_phases_in_their_order(tmp_path):
    desk, phases = Desk(tmp_path, make(GRID, finalist_seeds=2), n_slots=1), []
    while not desk.driver.finished:
        if name := desk.take(completes):
            phases.append(status_in(desk.ledger, desk.settings).phase)
            while not desk.step(name):
                phases.append(status_in(desk.ledger, desk.settings).phase)
    phases.append(status_in(desk.ledger, desk.settings).phase)
    in_order = [STARTING, "training", "testing finalists on fresh seeds", "evaluating finalists", "ended"]
    assert [phase for phase, _ in groupby(phases)] == in_order
    found = status_in(desk.ledger, desk.settings)
    assert found.n_evaluated == found.n_to_evaluate > 0
    assert (found.share_done, found.seconds_left, found.running) == (1.0, None, ())


def test_until_a_trial_has_reported_workers_start_and_for_how_long_is_said_after_a_resume_too():
    settings = make(TPE, n_trials=8)
    first = trial(0, started_at=90.0, ended_at=95.0)
    at_work = trial(1, state="running", history=(), cost=None, started_at=101.0)
    moment = Moment(now=112.4, began_at=100.0)
    for trials in ([at_work], [first, at_work], [first]):
        status = status_of(trials, settings, moment=moment)
        assert (status.phase, status.starting_seconds) == (STARTING, pytest.approx(12.4))
        assert counted_line("a", status).startswith(f"a: {STARTING}, 12 s, ")
    for reported in (replace(first, ended_at=105.0), replace(at_work, history=(measurement(50, 2.0),))):
        status = status_of([reported], settings, moment=moment)
        assert (status.phase, status.starting_seconds) == ("training", None)
        assert counted_line("a", status).startswith("a: training, ")


def test_between_search_and_runs_under_other_seeds_those_are_what_comes():
    searched = [trial(0)]
    settings = make(TPE, n_trials=1, finalist_seeds=2)
    assert status_of(searched, settings).phase == "testing finalists on fresh seeds"
    assert status_of(searched, make(TPE, n_trials=1)).phase == "evaluating finalists"


def test_of_a_sweep_whose_trials_were_all_reused_evaluations_tell_how_much_is_done():
    settings, moment = make(GRID, finalist_seeds=1), Moment(now=100.0, began_at=90.0)
    on_front = [{"history": (measurement(200, 2.0 - n),), "cost": cost(peak_memory_mib=100.0 + n)} for n in range(2)]
    ranks = [TrialConfig(precision="16bit", rank=rank, alpha=8) for rank in (4, 8)]
    trials = [trial(n, config=config, **of) for n, (config, of) in enumerate(zip(ranks, on_front, strict=True))]
    for n_evaluated in range(3):
        evaluated = [replace(one, test_evaluation=evaluated_on_test()) for one in trials[:n_evaluated]]
        found = status_of([*evaluated, *trials[n_evaluated:]], settings, ended=True, moment=moment)
        assert (found.phase, found.n_to_evaluate) == ("evaluating finalists", 2)
        assert (found.share_done, found.seconds_left) == (n_evaluated / 2, None)


def test_an_evaluation_that_failed_is_neither_done_nor_to_come():
    settings = make(GRID, finalist_seeds=1)
    costs = [cost(peak_memory_mib=100.0 + n) for n in range(2)]
    first, second = (trial(n, history=(measurement(200, 2.0 - n),), cost=own) for n, own in enumerate(costs))
    second = replace(second, config=replace(second.config, rank=16), failed_evaluations={"evaluate": "out of memory"})
    found = status_of([replace(first, test_evaluation=evaluated_on_test()), second], settings)
    assert (found.n_evaluated, found.n_to_evaluate) == (1, 1)
    compared = replace(second, failed_evaluations={"compare": "out of memory"})
    found = status_of([replace(first, test_evaluation=evaluated_on_test()), compared], settings)
    assert (found.n_evaluated, found.n_to_evaluate) == (1, 2)


def test_a_sweep_that_was_interrupted_is_not_nearly_done_as_it_is_written():
    moment = Moment(now=100.0, spent_seconds=1000.0, writing=("writing figures", 97.0))
    settings = make(TPE, n_trials=8)
    assert status_of([trial(0)], settings, moment=moment).share_done == 0.0
    assert status_of([trial(0)], settings, finished=True, moment=moment).share_done > 0.9


def test_what_is_written_at_the_end_is_named_until_all_is_written(tmp_path):
    settings, _ = swept(tmp_path)
    path, seen = sweep_folder(settings.name, tmp_path) / "ledger.db", []

    def finish(files, seconds, *, interrupted, hurried):
        with closing(Ledger(path, read_only=True)) as ledger:
            seen.append(status_in(ledger, settings).phase)
        return SimpleNamespace(page="http://127.0.0.1:5000/#/x")

    with closing(Ledger(path)) as ledger:
        assert status_in(ledger, settings).phase == "ended"
    assert end(settings, tmp_path, SimpleNamespace(finish=finish), 1.0, False) == "http://127.0.0.1:5000/#/x"
    assert seen == ["writing MLflow"]
    with closing(Ledger(path, read_only=True)) as ledger:
        assert status_in(ledger, settings).phase == "ended"


def test_files_are_counted_down_by_what_is_written_and_never_below_zero():
    first, second = WRITING_SECONDS.values()
    moments = {
        first + second: Moment(now=100.0),
        first - 3.0 + second: Moment(now=100.0, writing=("writing figures", 97.0)),
        second: Moment(now=1e6, writing=("writing figures", 97.0)),
        second - 1.0: Moment(now=100.0, writing=("writing MLflow", 99.0)),
        0.0: Moment(now=1e6, writing=("writing MLflow", 99.0)),
    }
    for left, moment in moments.items():
        assert moment.writing_seconds_left == pytest.approx(left)


def test_a_sweep_whose_process_was_killed_while_it_wrote_has_ended_once_it_is_synced(tmp_path):
    settings, _ = swept(tmp_path)
    path = sweep_folder(settings.name, tmp_path) / "ledger.db"
    with closing(Ledger(path)) as ledger:
        ledger.set_fact(WRITING, ["writing figures", 1e9])
        assert status_in(ledger, settings).phase == "writing figures"
    publish(settings, tmp_path, interrupted=False)
    with closing(Ledger(path, read_only=True)) as ledger:
        assert status_in(ledger, settings).phase == "ended"
