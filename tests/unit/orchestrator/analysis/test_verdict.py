"""The verdict on 4 bits: what it rests on, its one sentence, why there is none, and behaviour beside it."""

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.verdict import Verdict, behaviour_of, figures_of, verdicts
from orchestrator.ledger.rows import TEST_EVALUATION
from tests.support.sweeps import estimate, evaluated_on_test, evaluated_pair, likeness, make, similarity, trial
from trainables.values.config import TrialConfig, canonical_json
from trainables.values.findings import Comparison
from trainables.values.results import TrialResult

NF4 = TrialConfig(precision="nf4", rank=4, alpha=8)
SETTINGS = make()


def said(*trials: TrialResult, gib: float | None = None, **asked) -> Verdict | None:
    """The verdict on the first trial."""
    return verdicts(trials, make(**asked), lambda config: gib and 1024 * gib).get(trials[0].key)


def run(seed: int, lost: float, **values) -> TrialResult:
    """A 4-bit trial of a seed, evaluated beside its baseline."""
    origin = "search" if seed == 0 else "replicate"
    evaluation = evaluated_pair(lost, seed=seed, **values)
    return trial(seed, config=replace(NF4, seed=seed), origin=origin, test_evaluation=evaluation)


def seeds(*lost: float) -> list[TrialResult]:
    return [run(seed, share) for seed, share in enumerate(lost)]


PAIRS = {"kept": (0.01, 0.012, 0.011), "lost": (0.09, 0.092, 0.091), "undecided": (0.02, 0.09, 0.05)}


@pytest.mark.parametrize(("answer", "lost"), PAIRS.items())
def test_three_pairs_decide_by_the_margin(answer, lost):
    verdict = said(*seeds(*lost))
    assert verdict.answer == answer
    assert verdict.lost.n_pairs == 3
    assert verdict.lost.share == pytest.approx(sum(lost) / 3, abs=0.002)
    low, high = 100 * verdict.lost.low, 100 * verdict.lost.high
    share = f"{100 * verdict.lost.share:.1f} % ({low:.1f} to {high:.1f}) of what tuning gained"
    least, largest = (100 * share for share in verdict.lost.over_seeds)
    assert (least, largest) == pytest.approx((100 * min(lost), 100 * max(lost)), abs=0.3)
    basis = f"margin 5 %, 3 seeds from {least:.1f} to {largest:.1f} %, 64 groups of test rows"
    said_first = f"{answer}: 4 bits lose {share} ({basis}); rounding alone costs"
    assert verdict.sentence.startswith(said_first)


def test_the_sentence_says_what_rounding_alone_costs_and_how_much_of_it_tuning_won_back():
    sentence = said(*seeds(0.1, 0.1, 0.1)).sentence
    assert "rounding alone costs the untuned base 40.0 % of the gain; tuning won back 75 % of that" in sentence
    assert said(*seeds(0.6, 0.6, 0.6)).sentence.endswith("tuning won back none of that")


def test_the_margin_is_a_setting():
    assert said(*seeds(0.09, 0.092, 0.091), verdict_margin=0.15).answer == "kept"


def test_one_pair_is_called_one_seed_and_only_runs_of_the_same_config_make_pairs():
    other = replace(run(1, 0.5), config=replace(NF4, seed=1, rank=8))
    unfinished = replace(run(2, 0.5), state="failed")
    elsewhere = replace(run(3, 0.5), test_evaluation=evaluated_pair(0.5, n_rows=40))
    verdict = said(run(0, 0.01), other, unfinished, elsewhere)
    assert verdict.lost.n_pairs == 1
    assert "margin 5 %, one seed" in verdict.sentence


def test_few_groups_give_the_share_without_a_range_and_no_verdict():
    verdict = said(run(0, 0.01, n_rows=12))
    assert verdict.answer == "no verdict"
    assert verdict.sentence.startswith("no verdict: 12 groups of equal instruction are too few")
    assert "; 4 bits lose 0.8 % of what tuning gained (one seed)" in verdict.sentence
    assert " to " not in verdict.sentence


def test_where_tuning_gained_nothing_there_is_no_verdict():
    verdict = said(run(0, 0.01, gain_nats=-0.1))
    assert verdict.answer == "no verdict"
    assert verdict.sentence.startswith("no verdict: tuning gained nothing")


@pytest.mark.parametrize("state", ["refused", "oom"])
def test_a_baseline_that_does_not_fit_makes_the_verdict_not_measurable_and_its_need_is_named(state):
    baseline = trial(1, config=NF4.at_other_precision, origin="baseline", state=state, reason="no room")
    verdict = said(trial(0, config=NF4), baseline, gib=17.25)
    assert verdict == Verdict(
        answer="not measurable here", sentence="not measurable here: the 16-bit baseline needs 17.2 GiB"
    )
    assert "needs more memory than there is" in said(trial(0, config=NF4), baseline).sentence


def test_a_baseline_that_diverged_is_the_reason_for_no_verdict():
    baseline = trial(1, config=NF4.at_other_precision, origin="baseline", state="diverged", reason="loss is nan")
    assert said(trial(0, config=NF4), baseline).sentence == (
        "no verdict: the 16-bit baseline ended as diverged (loss is nan)"
    )


def test_a_ledger_of_protocol_1_is_read_and_its_trials_are_said_to_be_of_it():
    old = {name: value for name, value in asdict(evaluated_pair(0.01)).items() if not name.startswith("baseline_")}
    del old["row_groups"]
    read = TEST_EVALUATION.validate_json(canonical_json(old))
    verdict = said(trial(0, config=NF4, test_evaluation=read))
    assert verdict.answer == "no verdict"
    assert "protocol 1" in verdict.sentence
    assert verdict.lost is None


def test_16_bit_trials_seed_replicates_and_trials_that_were_not_evaluated_have_no_verdict():
    assert said(trial(0)) is None
    assert said(replace(run(0, 0.01), origin="replicate")) is None
    assert said(trial(0, config=NF4, similarity=similarity(0.99))) is None


def against_seeds(kl_nats: float, replicates: list[float], low: float = 0.97) -> Comparison:
    return Comparison(
        quantized=likeness(0.98, low=low, kl_nats=kl_nats),
        untuned=likeness(0.1),
        replicates=tuple(likeness(kl_nats=kl) for kl in replicates),
    )


@given(st.integers(0, 40), st.lists(st.integers(1, 10), min_size=1, max_size=4))
def test_behaviour_is_held_against_half_the_lowest_and_twice_the_highest_seed(kl, replicates):
    text = behaviour_of(against_seeds(kl / 100, [r / 100 for r in replicates]), 0.95)
    if kl < min(replicates) / 2:
        assert "move texts less than half as much as another seed" in text
    elif kl > max(replicates) * 2:
        assert "move texts more than twice as much as another seed" in text
    else:
        assert "move texts half to twice as much as another seed" in text


def test_behaviour_answers_the_cards_question_by_the_lower_end_and_decides_nothing():
    assert "cosine at least 0.95: no (0.9800, lower end 0.9400)" in behaviour_of(against_seeds(1, [], low=0.94), 0.95)
    far = replace(evaluated_pair(0.01), comparison=against_seeds(9.0, [0.1], low=0.1))
    verdict = said(trial(0, config=NF4, test_evaluation=far))
    assert verdict.answer == "kept"
    assert "more than twice as much as another seed" in verdict.behaviour
    assert "cosine at least 0.5: no" in said(trial(0, config=NF4, test_evaluation=far), min_similarity=0.5).behaviour


def test_the_ratio_to_seeds_is_given_with_its_range_over_them():
    seeds_moved = tuple(likeness(1 - moved) for moved in (0.04, 0.1, 0.02))
    found = replace(similarity(0.99), replicates=seeds_moved)
    assert found.ratio_over_seeds == (pytest.approx(0.1), pytest.approx(0.5))
    assert similarity(0.99).ratio_over_seeds is None


def test_figures_hold_values_intervals_and_seed_replicates_of_both_sets_of_rows():
    comparison = Comparison(
        quantized=likeness(0.99, low=0.98),
        untuned=likeness(0.5),
        replicates=(likeness(0.9), likeness(0.8)),
        quantization_to_seed_ratio=estimate(0.1, 0.05),
    )
    found = figures_of(trial(0, config=NF4, similarity=similarity(0.97), test_evaluation=evaluated_on_test(comparison)))
    assert found["embedding_cosine"] == 0.97
    assert found["test_embedding_cosine_low"] == 0.98
    assert found["test_untuned_embedding_cosine"] == 0.5
    assert found["test_replicate_embedding_cosine"] == pytest.approx(0.85)
    assert found["test_quantization_to_seed_ratio_low"] == 0.05
    assert found["test_eval_loss_nats"] == pytest.approx(2.0)
    assert found["test_untuned_loss_nats"] == pytest.approx(4.0)
