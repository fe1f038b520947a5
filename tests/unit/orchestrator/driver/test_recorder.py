"""What the driver keeps of a trial beside its row in the ledger."""

from ray.tune.experiment import Trial

from orchestrator.driver.recorder import TUNES_OWN
from tests.support.sweeps import GRID, Desk, make, space


def test_of_a_trial_that_ended_tune_keeps_nothing_that_the_ledger_has(tmp_path):
    """Tune keeps every Trial to the end of a sweep, with its config and windows over each number it reported."""
    desk = Desk(tmp_path, make(space(GRID)))
    (asked, task, reports) = desk.running[desk.take()]
    trial = Trial("stub", stub=True, config=asked.config, evaluated_params=dict(asked.config))
    for report in reports:
        assert trial.config["task"]["key"] == task.key
        result = {**report, "training_iteration": 1, "pid": 1, "config": {**asked.config}, "time_total_s": 1.0}
        desk.recorder.on_trial_result(0, [], trial, result)
        trial.update_last_result(result)
    desk.recorder.on_trial_complete(0, [], trial)
    assert desk.ledger.entry(task.key).result.history
    assert trial.last_result.keys() <= TUNES_OWN
    assert trial.last_result["done"]
    assert not any((trial.config, trial.evaluated_params, trial.metric_analysis, trial.metric_n_steps))
