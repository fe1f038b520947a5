"""The last lines of a sweep: origins that add up, the trial that `best` names, a budget that it fits."""

import pytest

from orchestrator.analysis import choice
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.cli.closing import ORIGINS, counts_line, next_lines
from tests.support.sweeps import TPE, Desk, make


@pytest.fixture
def sweep(tmp_path) -> SweepSnapshot:
    desk = Desk(tmp_path, make(TPE, name="t", n_trials=4))
    desk.finish()
    return SweepSnapshot.of(desk.settings, desk.ledger)


def test_the_origins_of_all_trials_are_counted_and_add_up(sweep):
    line = counts_line(sweep.trials)
    first, _, rest = line.partition(" trials (")
    origins, _, states = rest.partition("): ")
    assert int(first) == len(sweep.trials)
    for part in (origins, states):
        assert sum(int(count.split()[0]) for count in part.split(", ")) == len(sweep.trials), part
    assert {trial.origin for trial in sweep.trials} <= ORIGINS.keys()


def test_the_answer_is_the_trial_that_best_names_and_fits_the_budget_that_is_offered(sweep):
    answer, budget = next_lines(sweep)
    chosen = choice.choose(sweep)
    assert answer.startswith(f"best: trial {chosen.trial.number}, ")
    assert answer.endswith(chosen.sure)
    size = budget.rpartition(" ")[2]
    assert choice.choose(sweep, max_memory_mib=choice.mib_of(size)).trial == chosen.trial


def test_the_report_is_named_where_it_lies_and_nothing_is_said_of_a_sweep_without_an_answer(sweep, tmp_path):
    (tmp_path / "report.html").touch()
    assert next_lines(sweep)[-1] == f"report: {tmp_path / 'report.html'}"
    assert next_lines(SweepSnapshot(settings=sweep.settings)) == []
