"""The last lines of a sweep: origins that add up, the trial that `best` names, a budget that it fits."""

import io
from dataclasses import replace

import pytest

from orchestrator.analysis import choice
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.cli.closing import MAX_LINES, ORIGINS, counts_line, next_lines, report_text
from orchestrator.report.content import report_of
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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("n_steps", [0, 1, 3, 40])
@pytest.mark.parametrize("columns", [80, 120])
def test_a_report_has_eight_lines_at_most_and_keeps_the_answer_and_the_budget(columns, n_steps, sweep, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    report = report_of(sweep)
    report = replace(report, within_memory=report.within_memory[:1] * n_steps)
    for stream in (io.StringIO(), Terminal()):
        text = report_text(report, sweep, stream)
        assert " ".join(report.answer.split()) in " ".join(text.split())
        assert f"best t --max-memory {choice.choose(sweep).trial.cost.peak_memory_mib:.0f}MiB" in " ".join(text.split())
        assert len(text.splitlines()) <= MAX_LINES
        assert 0 < text.count("MiB: trial") <= n_steps or not n_steps


def test_a_sweep_that_is_not_finished_is_called_so_and_how_to_go_on(tmp_path):
    desk = Desk(tmp_path, make(TPE, name="t", n_trials=4))
    begun = SweepSnapshot.of(desk.settings, desk.ledger)
    text = report_text(report_of(begun), begun, io.StringIO())
    assert "not finished: 0 of" in text
    assert text.rstrip().endswith("resume t")
