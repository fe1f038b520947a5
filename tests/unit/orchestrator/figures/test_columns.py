"""Trials as columns, held against the trials one by one."""

from orchestrator.analysis.front import objective_value
from orchestrator.figures.columns import Columns
from orchestrator.objectives import OBJECTIVES
from tests.support.swept import swept


def test_columns_are_what_the_trials_say_one_by_one(tmp_path):
    _, sweep = swept(tmp_path)
    columns = Columns.of(sweep.trials, sweep)
    assert list(columns.trials) == list(sweep.trials)
    assert columns.on_front.tolist() == [trial in sweep.front.members for trial in sweep.trials]
    for name, objective in OBJECTIVES.items():
        expected = [(objective_value(trial, name) or 0.0) * objective.factor for trial in sweep.trials]
        assert columns.objective(name).tolist() == expected
    parts = dict(columns.by_precision())
    assert sorted(index for part in parts.values() for index in part) == list(range(len(sweep.trials)))
    for precision, part in parts.items():
        assert {trial.config.precision for trial in columns.trials[part]} == {precision}


def test_no_trials_make_columns_without_rows(tmp_path):
    _, sweep = swept(tmp_path)
    columns = Columns.of([], sweep)
    assert columns.objective("peak_memory_mib").tolist() == []
    assert dict(columns.by_precision()) == {}
