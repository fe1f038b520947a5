"""A comparison or test evaluation that failed: said wherever a verdict stands, an exit code, tried again by resume."""

import json
from dataclasses import asdict

import pytest

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.analysis.verdict import Verdict, failed_evaluations, verdicts
from orchestrator.api.published import fault_of
from orchestrator.cli.progress import print_result
from orchestrator.driver.retries import BACK_OFF_SECONDS
from orchestrator.ledger import FAULTS
from orchestrator.report import card as cards
from orchestrator.report import content as report
from orchestrator.report import render
from orchestrator.report.rows import trial_row
from orchestrator.settings import command as hints
from orchestrator.settings import sweep_folder
from orchestrator.settings.stored import save
from orchestrator.tracking.projection import Tracker
from orchestrator.tracking.store import store_uri
from tests.support.stores import place_store
from tests.support.sweeps import (
    GRID,
    WORKLOAD,
    Desk,
    breaks,
    completes,
    make,
    similarity,
    space,
    trial,
    without_similarity,
)
from trainables.values.config import TrialConfig

PAIR = space(GRID, parameters={"rank": {"values": [4]}, "precision": {"values": ["nf4", "16bit"]}})
NF4 = TrialConfig(precision="nf4", rank=4, alpha=8, max_steps=8)
ASKED = make(PAIR, objectives=("peak_memory_mib", "eval_loss_nats"))


def failing(*kinds: str):
    """Tasks of these kinds fail, all others complete."""
    return lambda task: breaks(task, state="oom") if task.kind in kinds else completes(task)


def said_of(found) -> Verdict:
    """The verdict on the one trial of a sweep."""
    return verdicts([found], ASKED, lambda config: None)[found.key]


def desk_at(folder) -> Desk:
    desk = Desk(folder, ASKED)
    desk.ledger.set_fact("workload", asdict(WORKLOAD))
    return desk


def texts_of(desk: Desk, capsys) -> dict[str, str]:
    """What each reader of a sweep is shown."""
    result, found = (
        SweepSnapshot.of(desk.settings, desk.ledger),
        report.report_of(SweepSnapshot.of(desk.settings, desk.ledger)),
    )
    capsys.readouterr()
    print_result(result, None, as_json=False)
    said = {"terminal": capsys.readouterr().out}
    print_result(result, None, as_json=True)
    said["json"] = capsys.readouterr().out
    said |= {"report": render.markdown(found, {}), "description": render.description(found, 5000)}
    return said | {"card": str(cards.card_of(found)), "report as JSON": json.dumps(found.to_dict())}


def test_a_test_evaluation_that_failed_is_the_verdict_wherever_one_stands_and_no_seed_is_said_to_be_missing(
    tmp_path, capsys
):
    desk = desk_at(tmp_path)
    desk.finish(failing("evaluate"))
    assert {t.state for t in desk.ledger.trials()} == {"completed"}
    for reader, text in texts_of(desk, capsys).items():
        assert "evaluation failed" in text, reader
        assert "evaluating it on the test rows" in text, reader
        assert "oom here" in text, reader
        assert "undecided:" not in text, reader
        assert "no other seed" not in text, reader


@pytest.mark.parametrize(
    ("kind", "what"), [("evaluate", "evaluating it"), ("compare", "comparing it with its 16-bit baseline")]
)
def test_a_sweep_with_a_trial_that_could_not_be_evaluated_ends_with_an_error_until_resume_mends_it(
    tmp_path, kind, what
):
    desk = desk_at(tmp_path)
    if kind == "compare":  # a pair whose second half brought no similarity
        for _ in range(2):
            desk.do(without_similarity)
    desk.finish(failing(kind))
    nf4 = desk.ledger.trials()[0]
    assert nf4.config == NF4
    fault = fault_of(SweepSnapshot.of(desk.settings, desk.ledger))
    assert fault.exit_code == 1
    assert f"trial {nf4.number} could not be evaluated: {what}" in str(fault)
    assert "(oom here)" in str(fault)
    assert str(fault).endswith(f"to try again: {hints.command()} resume t")
    desk.crash()
    resumed = Desk(tmp_path, ASKED)
    resumed.finish()
    assert fault_of(SweepSnapshot.of(resumed.settings, resumed.ledger)) is None
    assert not resumed.ledger.fact(FAULTS)
    assert said_of(resumed.ledger.entry(nf4.key).result).answer != "evaluation failed"


def test_an_evaluation_whose_worker_was_lost_too_often_failed_as_well(tmp_path):
    desk = desk_at(tmp_path)
    while desk.all_asked[-1:] == [] or desk.all_asked[-1].kind != "evaluate":
        taken = desk.take()
        if desk.all_asked[-1].kind != "evaluate":
            desk.end(taken)
    for _ in BACK_OFF_SECONDS:
        desk.lose(taken)
        taken = desk.take_again(taken)
    desk.lose(taken)
    desk.finish()
    (failed,) = failed_evaluations(desk.ledger.trials(), ASKED)
    assert (failed.what, failed.reason) == ("evaluate", "its worker process was lost, the 3rd time")


def test_the_failure_counts_before_what_the_validation_rows_say():
    found = trial(0, config=NF4, similarity=similarity(0.1), failed_evaluations={"evaluate": "out of memory"})
    verdict = said_of(found)
    assert (verdict.answer, verdict.behaviour) == ("evaluation failed", None)
    assert str(verdict) == "evaluation failed (evaluating it on the test rows: out of memory)"
    assert trial_row(found, False, verdict)["verdict"] == "evaluation failed"
    alone = said_of(trial(0, config=NF4, failed_evaluations={"compare": "out of memory"}))
    assert alone.answer == "evaluation failed"


def test_what_failed_of_a_trial_that_nobody_asks_about_any_more_is_no_error():
    """It was a finalist once; a better one has taken its place."""
    once = trial(0, failed_evaluations={"evaluate": "out of memory"}, history=())
    assert failed_evaluations([once, trial(1)], ASKED) == ()


def test_the_tag_of_a_run_follows_a_test_evaluation_that_fails_after_its_trial_has_ended(tmp_path):
    from mlflow import MlflowClient

    root = tmp_path / "mlflow_runs"
    place_store(root)
    save(ASKED, sweep_folder("t", root))
    desk = desk_at(sweep_folder("t", root))
    for fact, value in {"id": "5" * 32, "created_at": 1e9}.items():
        desk.ledger.set_fact(fact, value)
    for _ in range(2):
        desk.do()
    tracker = Tracker(ASKED, desk.ledger, root)
    tracker.sync()
    desk.finish(failing("evaluate"))
    tracker.sync()
    (nf4,) = (t.key for t in desk.ledger.trials() if t.config == NF4)
    desk.ledger.close()
    (run,) = MlflowClient(store_uri(root)).search_runs([tracker.experiment_id], f"tags.trial_key = '{nf4}'")
    assert run.data.tags["verdict"] == "evaluation failed (evaluating it on the test rows: oom here)"
