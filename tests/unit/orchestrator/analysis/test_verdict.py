"""The verdict on 4 bits: a threshold on the cosine, and the KL against that of another seed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.verdict import evaluated, figures_of, verdict_of
from tests.support.sweeps import estimate, evaluated_on_test, likeness, similarity, trial
from trainables.values.config import TrialConfig
from trainables.values.findings import Comparison

NF4 = TrialConfig(precision="nf4", rank=4, alpha=8)
SHARES = st.integers(0, 4).map(lambda n: n / 4)


def compared(*, low: float, kl_nats: float, seeds: list[float]) -> Comparison:
    return Comparison(
        quantized=likeness(1.0, low=low, kl_nats=kl_nats),
        untuned=likeness(0.1),
        replicates=tuple(likeness(kl_nats=kl) for kl in seeds),
    )


@given(SHARES, SHARES, SHARES, st.lists(SHARES, max_size=3))
def test_preserved_needs_both_halves_and_undecided_is_only_what_no_seed_was_run_for(threshold, low, kl, seeds):
    answer, reasons = evaluated(compared(low=low, kl_nats=kl, seeds=seeds), threshold)
    close = low >= threshold
    if seeds:
        expected = "preserved" if close and kl <= sum(seeds) / len(seeds) else "not preserved"
    else:
        expected = "undecided" if close else "not preserved"
    assert answer == expected
    assert reasons


def test_the_lower_end_of_the_interval_decides_and_not_the_value():
    assert evaluated(compared(low=0.94, kl_nats=0, seeds=[1.0]), 0.95)[0] == "not preserved"


def test_every_half_that_failed_is_named_with_its_figures():
    _, reasons = evaluated(compared(low=0.5, kl_nats=0.3, seeds=[0.1, 0.2]), 0.95)
    assert len(reasons) == 2
    assert "0.5000" in reasons[0]
    assert "0.3000" in reasons[1]
    assert "0.1500" in reasons[1]


def test_the_test_rows_count_where_a_trial_was_evaluated_on_them():
    worse = evaluated_on_test(compared(low=0.1, kl_nats=0.0, seeds=[1.0]))
    searched = trial(0, config=NF4, similarity=similarity(0.99))
    assert verdict_of(searched, 0.95).rows == "validation"
    both = trial(0, config=NF4, similarity=similarity(0.99), test_evaluation=worse)
    assert (verdict_of(both, 0.95).rows, verdict_of(both, 0.95).answer) == ("test", "not preserved")


def test_a_16_bit_trial_has_no_verdict_and_one_without_baseline_is_undecided():
    assert verdict_of(trial(0), 0.95) is None
    assert verdict_of(trial(0, config=NF4), 0.95).answer == "undecided"


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
