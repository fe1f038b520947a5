"""One sentence a verdict: the same in the terminal, the report, the card, MLflow and JSON; what is lost is marked."""

import json
from dataclasses import replace

import pytest

from orchestrator.analysis.choice import choose
from orchestrator.analysis.verdict import verdicts
from orchestrator.cli.progress import more_seeds_line, print_result
from orchestrator.figures import scatter
from orchestrator.ledger.rows import Entry
from orchestrator.report import card, content, render
from orchestrator.report.rows import trial_row
from orchestrator.settings.command import command
from orchestrator.tracking import trials as tracked
from tests.support.sweeps import WORKLOAD, cost, evaluated_pair, make, measurement, similarity, snapshot, trial
from trainables.values.config import TrialConfig

NF4 = TrialConfig(precision="nf4", rank=4, alpha=8)
NUMBERS = {"lost_share", "lost_share_low", "lost_share_high"}
IN_TABLE = {"verdict", "rounding_share"}
SETTINGS = make(objectives=("eval_loss_nats",))
FACTS = {"workload": {name: getattr(WORKLOAD, name) for name in WORKLOAD.__dataclass_fields__}}


def sweep_of(lost: float, n_seeds: int = 1, loss_16bit: float = 2.1):
    """A sweep of one 4-bit trial, its baseline and replicates, all evaluated."""
    trials = [trial(0, config=NF4.at_other_precision, history=(measurement(200, loss_16bit),))]
    for seed in range(n_seeds):
        run = trial(
            1 + seed,
            config=replace(NF4, seed=seed),
            origin="replicate" if seed else "search",
            similarity=similarity(),
            test_evaluation=evaluated_pair(lost, seed=seed),
        )
        trials.append(run)
    return snapshot(SETTINGS, trials, FACTS)


def texts_of(sweep, capsys) -> dict[str, str]:
    """What each reader of a sweep is shown."""
    report, nf4 = content.report_of(sweep), sweep.trials[1]
    print_result(sweep, None, as_json=False)
    texts = {"terminal": capsys.readouterr().out}
    print_result(sweep, None, as_json=True)
    texts["json"] = json.dumps(json.loads(capsys.readouterr().out), ensure_ascii=False)
    texts |= {"report": render.markdown(report, {}), "report as JSON": json.dumps(report.to_dict())}
    texts |= {"card": str(card.card_of(report)), "adapter's card": str(card.card_of(report, None, nf4))}
    verdict = sweep.verdicts[nf4.key]
    entry = Entry(result=replace(nf4, ended_at=1.0), params={}, measured_at=(1.0,))
    standing = tracked.standings(sweep)[nf4.key]
    texts["mlflow"] = str(tracked.of_trial(entry, "s", "p", standing, final=True).tags)
    texts["parquet"] = str(trial_row(nf4, True, verdict))
    return texts


@pytest.mark.parametrize("lost", [0.01, 0.09])
def test_every_reader_is_told_the_same_sentence_and_the_same_line_of_behaviour(lost, capsys):
    sweep = sweep_of(lost, n_seeds=3)
    verdict = sweep.verdicts[sweep.trials[1].key]
    assert verdict.lost.n_pairs == 3
    for reader, text in texts_of(sweep, capsys).items():
        assert verdict.sentence in text.replace("\n  ", " "), reader
        if reader != "parquet":
            assert verdict.behaviour in text, reader


@pytest.mark.parametrize(("loss_16bit", "named"), [(2.1, "trial 1: "), (1.5, "trial 1 (off the front): ")])
def test_of_a_verdict_on_a_trial_that_the_table_does_not_show_the_terminal_says_so(loss_16bit, named, capsys):
    sweep = sweep_of(0.01, loss_16bit=loss_16bit)
    text = texts_of(sweep, capsys)["terminal"]
    assert named + sweep.verdicts[sweep.trials[1].key].sentence[:40] in text


def test_the_terminal_says_what_tuning_gained_at_16_bits_of_which_the_shares_are(capsys):
    sweep = sweep_of(0.01)
    lost = sweep.verdicts[sweep.trials[1].key].lost
    assert f"; at 16 bits tuning gained {lost.gain_nats:.4f} nats" in texts_of(sweep, capsys)["terminal"]
    assert lost.gain_nats > 0


@pytest.mark.parametrize(("lost", "marked"), [(0.09, True), (0.01, False)])
def test_a_trial_that_is_lost_is_marked_in_the_front_and_in_the_table_of_budgets(lost, marked, capsys):
    sweep = sweep_of(lost)
    texts = texts_of(sweep, capsys)
    budgets = render.sections(content.report_of(sweep), {})["budgets"]
    assert ("nf4, lost" in texts["terminal"]) == marked
    assert ("| 4 bits, lost |" in texts["report"]) == marked
    assert ("| 4 bits, lost |" in budgets) == marked
    assert ("at 4 bits (lost)" in texts["card"]) == marked
    assert ("targets attn.c_attn, lost: loss" in texts["report"]) == marked
    assert ("what 4 bits cost it: lost" in choose(sweep).text) == marked
    picture = scatter.loss_memory(sweep)
    drawn = [trace.name for trace in picture.html().data]
    named = [text.get_text() for text in picture.png().legends[0].get_texts()]
    assert (scatter.LOST in drawn) == (scatter.LOST in named) == marked


def test_mlflow_has_the_share_lost_as_a_metric_a_step_for_each_number_of_seeds_and_the_verdict_in_the_table():
    few, more = (sweep_of(0.09, n_seeds=n) for n in (1, 3))

    def points(sweep, final=True):
        standing = tracked.standings(sweep)[sweep.trials[1].key]
        entry = Entry(result=replace(sweep.trials[1], ended_at=1.0), params={}, measured_at=(1.0,))
        contents = tracked.of_trial(entry, "s", "p", standing, final=final)
        points, others = (
            {(name, step): value for name, value, _, step in some if name in NUMBERS | IN_TABLE}
            for some in (contents.points, contents.others)
        )
        return points, others

    (found, others), lost = points(more), more.verdicts[more.trials[1].key].lost
    assert {name for name, _ in found} == NUMBERS
    assert {step for _, step in found} == {1, 2, 3}
    assert (found["lost_share", 3], found["lost_share_high", 3]) == (lost.share, lost.high)
    assert (others["verdict", 3], others["rounding_share", 3]) == (-1.0, lost.rounding_share)
    assert points(few)[0].items() <= found.items(), "seeds that are added later change nothing"
    assert points(more, final=False) == ({}, {})


def test_the_end_names_the_command_that_adds_the_seeds_a_verdict_lacks():
    assert more_seeds_line(sweep_of(0.01)) == (
        f"the verdict on trial 1 is of one seed; for 3: {command()} resume t --verdict-seeds 3"
    )
    assert more_seeds_line(sweep_of(0.01, n_seeds=3)) is None


@pytest.mark.parametrize("others", [(), (9,), (8, 9)])
def test_the_end_says_why_other_verdicts_are_undecided_of_one_seed_and_the_flag_that_adds_seeds(others):
    best = sweep_of(0.01, n_seeds=3)
    unsure = [
        trial(
            number,
            config=replace(NF4, rank=number),
            cost=cost(peak_memory_mib=number / 100),
            history=(measurement(200, 3.0 - number / 100),),
            similarity=similarity(),
            test_evaluation=evaluated_pair(0.05),
        )
        for number in others
    ]
    sweep = snapshot(make(objectives=("peak_memory_mib", "eval_loss_nats")), [*best.trials, *unsure], FACTS)
    assert [sweep.verdicts[one.key].answer for one in unsure] == ["undecided"] * len(others)
    said = {
        (9,): "trial 9: undecided of one seed; ",
        (8, 9): "trials 8, 9: undecided of one seed; ",
    }
    rest = "other seeds are trained of the best 4-bit trial alone, 1; "
    rest += "a new sweep with --finalist-seeds 3 trains them of all finalists"
    assert more_seeds_line(sweep) == (said[others] + rest if others else None)
    asked = sweep.settings.model_copy(update={"finalist_seeds": 3})
    assert more_seeds_line(replace(sweep, settings=asked)) is None, "they were tried"


def test_verdicts_are_pure_in_what_they_are_given():
    sweep = sweep_of(0.01, n_seeds=3)
    again = verdicts(tuple(reversed(sweep.trials)), SETTINGS, lambda config: None)
    assert again == sweep.verdicts
