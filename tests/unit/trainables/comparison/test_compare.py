"""Comparing and evaluating: exact for a model against itself, right in its sums, gone without a trace."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.bases import assert_untouched, state_of
from trainables.comparison import bias, compare, samples
from trainables.data.tokenizer import open_tokenizer
from trainables.evaluation import held_out
from trainables.evaluation.readings import Readings
from trainables.models import base_model
from trainables.trial import Trial
from trainables.values.config import TrialConfig
from trainables.values.errors import CaptureFailed
from trainables.values.findings import Comparison, TestEvaluation
from trainables.worker_cache import WorkerCache

CONFIG = TrialConfig(
    precision="nf4", rank=4, alpha=8, learning_rate=3e-3, batch_size=2, max_length_tokens=64, max_steps=6
)
PRECISIONS = ("16bit", "nf4")


def trained(cache: WorkerCache, config: TrialConfig) -> dict[str, bytes]:
    """The adapter of a trial run to its end."""
    run = Trial(config, cache)
    try:
        list(run.measurements())
        return run.adapter_files()
    finally:
        run.close()


@pytest.fixture(scope="module")
def few(workload) -> WorkerCache:
    """A cache of its own with few held-out rows, of which the decoded ones are a part."""
    own = WorkerCache(workload, "cpu")
    own.rows = own.rows | {name: own.rows[name][: held_out.N_DECODED_ROWS + 6] for name in ("validation", "test")}
    return own


@pytest.fixture(scope="module")
def pair(few):
    """Adapter files of a 4-bit trial and of its baseline."""
    return trained(few, CONFIG), trained(few, CONFIG.at_other_precision)


@pytest.fixture(scope="module")
def replicates(few):
    return [trained(few, replace(CONFIG.at_other_precision, seed=seed)) for seed in (1, 2)]


@pytest.fixture(scope="module")
def compared(few, pair) -> Comparison:
    return compare.compare(few, nf4=pair[0], baseline=pair[1])


@pytest.fixture(scope="module")
def evaluated(few, pair, replicates) -> TestEvaluation:
    return compare.evaluate_on_test(few, CONFIG, files=pair[0], baseline=pair[1], replicates=replicates)


def test_comparing_with_the_baseline_repeats_exactly_and_leaves_both_bases_untouched(few, pair, compared):
    before = {precision: state_of(few.base(precision)) for precision in PRECISIONS}
    few.readings.clear()
    assert compare.compare(few, nf4=pair[0], baseline=pair[1]) == compared
    for precision, state in before.items():
        assert_untouched(few.base(precision), state)


def test_a_comparison_is_of_all_validation_rows_and_of_the_first_ones_for_decoding(compared):
    for similarity in (compared.quantized, compared.untuned):
        assert similarity.n_rows == held_out.N_DECODED_ROWS + 6
        assert similarity.n_decoded_rows == held_out.N_DECODED_ROWS
    assert 0.9 < compared.quantized.embedding_cosine.value < 1  # close to its baseline and not the same
    assert 0 < compared.quantized.token_match_rate.value < 1
    assert compared.quantized.kl_nats.value > 0


def test_both_models_read_the_baselines_text(few, pair, compared):
    """The cosine by hand; over each model's own text it would be another."""
    rows = few.rows["validation"][: held_out.N_DECODED_ROWS]
    with compare.attached(few.base("16bit"), pair[1]) as model:
        texts = held_out.greedy(model, rows)
        baseline = held_out.pooled_states(model, rows, texts)
    with compare.attached(few.base("nf4"), pair[0]) as model:
        own_texts = held_out.greedy(model, rows)
        ours, on_own_text = (held_out.pooled_states(model, rows, read) for read in (texts, own_texts))
    norms = np.linalg.norm(baseline, axis=1)
    cosine, other = (
        np.mean((x * baseline).sum(axis=1) / np.linalg.norm(x, axis=1) / norms) for x in (ours, on_own_text)
    )
    assert compared.quantized.embedding_cosine.value == pytest.approx(cosine, abs=1e-6)
    assert abs(cosine - other) > 1e-3, "the texts are too alike: the test shows too little"
    matches = [
        sum(a == b for a, b in zip(x, y, strict=False)) / max(len(x), len(y))
        for x, y in zip(own_texts, texts, strict=True)
    ]
    assert compared.quantized.token_match_rate.value == pytest.approx(np.mean(matches))


def test_the_pair_is_closer_than_a_4_bit_model_under_another_adapter(few, pair, compared):
    stranger = trained(few, replace(CONFIG, learning_rate=1e-1, seed=8))
    near, far = compared.quantized, compare.compare(few, nf4=stranger, baseline=pair[1]).quantized
    assert near.embedding_cosine.value > far.embedding_cosine.value
    assert near.centered_cosine.value > far.centered_cosine.value
    assert near.token_match_rate.value > far.token_match_rate.value
    assert near.top1_agreement.value > far.top1_agreement.value
    assert near.kl_nats.value < far.kl_nats.value


def test_the_untuned_base_is_compared_at_16_bits(few, pair, compared):
    """An adapter that changes nothing, on the 16-bit base: the untuned base by another way."""
    idle = Trial(CONFIG.at_other_precision, few)
    try:
        files = idle.adapter_files()
    finally:
        idle.close()
    test_evaluation = compare.evaluate_on_test(few, CONFIG.at_other_precision, files=files, baseline=pair[1])
    baseline_rows = few.rows
    few.rows = few.rows | {"validation": few.rows["test"]}
    try:
        untuned = compare.compare(few, nf4=pair[0], baseline=pair[1]).untuned
    finally:
        few.rows = baseline_rows
    assert test_evaluation.comparison.quantized == test_evaluation.comparison.untuned == untuned
    assert test_evaluation.row_nats == test_evaluation.untuned_row_nats
    assert untuned.kl_nats.value > 0


def test_a_baseline_against_itself_is_equal_in_everything_by_the_rule_of_three(few, pair, replicates):
    test_evaluation = compare.evaluate_on_test(
        few, CONFIG.at_other_precision, files=pair[1], baseline=pair[1], replicates=replicates
    )
    same = test_evaluation.comparison.quantized
    n, n_decoded = same.n_groups, same.n_decoded_groups
    assert n_decoded < same.n_decoded_rows, "some rows are of one group"
    for name, low in (
        ("token_match_rate", 1 - 3 / n_decoded),
        ("top1_agreement", 1 - 3 / n),
        ("embedding_cosine", 1 - 3 / n_decoded),
    ):
        estimate = getattr(same, name)
        assert (estimate.value, estimate.low, estimate.high) == (pytest.approx(1), pytest.approx(low), pytest.approx(1))
    assert same.kl_nats.value == 0
    assert same.recovered_cosine.value == pytest.approx(1)
    assert test_evaluation.comparison.quantization_to_seed_ratio.value == pytest.approx(0, abs=1e-6)
    assert all(share.kl_nats.value == 0 for share in test_evaluation.breakdown)
    assert all(shift.change.value == 0 and shift.gap_16bit == shift.gap_nf4 for shift in test_evaluation.bias)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_row_losses_sum_to_the_held_out_loss_with_and_without_the_adapter(few, pair, precision):
    files = pair[PRECISIONS[::-1].index(precision)]
    found = compare.evaluate_on_test(few, replace(CONFIG, precision=precision), files=files)
    rows = few.rows["test"]
    with compare.attached(few.base(precision), files) as model:
        assert found.eval_loss_nats == pytest.approx(held_out.eval_loss(model, rows), rel=1e-6)
    assert found.untuned_loss_nats == pytest.approx(held_out.eval_loss(few.base(precision), rows), rel=1e-6)
    assert found.eval_loss_nats < found.untuned_loss_nats
    assert [len(found.row_nats), len(found.row_tokens), len(found.untuned_row_nats)] == [len(rows)] * 3
    assert sum(found.row_tokens) == sum(
        len(row.input_ids) - max(1, row.n_prompt_tokens) for row in (r.first(256) for r in rows)
    )
    assert (found.comparison, found.breakdown, found.bias, found.samples) == (None, (), (), ())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_rows_are_read_by_an_untuned_base_once_and_by_each_trial_once(few, pair, precision):
    few.untuned_nats.clear()
    few.readings.clear()
    files, config = pair[PRECISIONS[::-1].index(precision)], replace(CONFIG, precision=precision)
    n_read, base = [0, 0], few.base(precision)
    for n in range(2):

        def count(*_, n=n):
            n_read[n] += 1

        hook = base.base_model.register_forward_hook(count)
        try:
            compare.evaluate_on_test(few, config, files=files)
        finally:
            hook.remove()
    n_batches = len(held_out.eval_batches(base, few.rows["test"]).batches)
    assert n_read == [2 * n_batches, n_batches]


def test_each_row_carries_its_own_loss(few, pair):
    rows = few.rows["test"]
    found = compare.evaluate_on_test(few, CONFIG, files=pair[0])
    with compare.attached(few.base("nf4"), pair[0]) as model:
        one_by_one = [held_out.eval_loss(model, [row]) for row in rows[:7]]
    means = np.array(found.row_nats) / np.array(found.row_tokens)
    np.testing.assert_allclose(means[:7], one_by_one, rtol=1e-5)


def test_a_4_bit_trials_evaluation_holds_the_losses_of_its_baseline_and_of_both_untuned_bases(few, pair, evaluated):
    baseline = compare.evaluate_on_test(few, CONFIG.at_other_precision, files=pair[1])
    np.testing.assert_allclose(evaluated.baseline_row_nats, baseline.row_nats, rtol=1e-6)
    np.testing.assert_allclose(evaluated.baseline_untuned_row_nats, baseline.untuned_row_nats, rtol=1e-6)
    assert evaluated.untuned_row_nats != evaluated.baseline_untuned_row_nats
    assert evaluated.row_groups == baseline.row_groups == tuple(row.group for row in few.rows["test"])
    assert baseline.baseline_row_nats == baseline.baseline_untuned_row_nats == ()


def test_a_test_evaluation_of_a_4_bit_trial_is_complete_and_repeats_exactly(few, pair, replicates, evaluated):
    before = {precision: state_of(few.base(precision)) for precision in PRECISIONS}
    few.readings.clear()
    assert compare.evaluate_on_test(few, CONFIG, files=pair[0], baseline=pair[1], replicates=replicates) == evaluated
    for precision, state in before.items():
        assert_untouched(few.base(precision), state)
    assert len(evaluated.comparison.replicates) == 2
    ratio = (1 - evaluated.comparison.quantized.embedding_cosine.value) / np.mean(
        [1 - seed.embedding_cosine.value for seed in evaluated.comparison.replicates]
    )
    assert evaluated.comparison.quantization_to_seed_ratio.value == pytest.approx(ratio)
    assert {share.by for share in evaluated.breakdown} == {
        "token frequency",
        "position in the response",
        "kind of task",
    }
    assert {shift.about for shift in evaluated.bias} == set(bias.WORDS)
    assert {share.group for share in evaluated.breakdown} & {"write", "classify", "explain"}


def test_what_was_read_with_a_baseline_is_what_it_is_a_replicate_by(few, pair, replicates, evaluated):
    """And the other way round: the models of one evaluation in other parts, with readings of the first and without."""
    few.readings.clear()
    compare.evaluate_on_test(few, CONFIG, files=pair[0], baseline=pair[1], replicates=replicates)
    given = {"files": pair[0], "baseline": replicates[0], "replicates": [pair[1], replicates[1]]}
    kept = compare.evaluate_on_test(few, CONFIG, **given)
    few.readings.clear()
    assert compare.evaluate_on_test(few, CONFIG, **given) == kept
    assert kept.comparison.quantized != evaluated.comparison.quantized


def test_the_untuned_base_of_an_evaluation_is_the_same_with_replicates_and_without(few, pair, evaluated):
    alone = compare.evaluate_on_test(few, CONFIG, files=pair[0], baseline=pair[1])
    assert alone.comparison.untuned == evaluated.comparison.untuned
    assert evaluated.comparison.untuned not in evaluated.comparison.replicates


def test_the_same_adapter_over_both_bases_is_read_by_each(few, pair):
    """What is kept of it is of 16 bits."""
    for _ in range(2):
        found = compare.evaluate_on_test(few, CONFIG, files=pair[1], baseline=pair[1])
        assert found.comparison.quantized.kl_nats.value > 1e-3


def test_the_groups_of_a_test_evaluation_weigh_out_to_the_kl_of_all_tokens(few, pair, evaluated):
    rows = few.rows["test"]
    with compare.attached(few.base("16bit"), pair[1]) as model:
        reference = held_out.response_states(model, rows)
    with compare.attached(few.base("nf4"), pair[0]) as model:
        kl, _ = held_out.divergence(model, held_out.response_states(model, rows), reference)
    for by in {share.by for share in evaluated.breakdown}:
        shares = [share for share in evaluated.breakdown if share.by == by]
        assert sum(share.n_tokens for share in shares) == len(kl) == sum(evaluated.row_tokens)
        assert sum(share.kl_nats.value * share.n_tokens for share in shares) == pytest.approx(kl.sum())


def test_samples_are_the_greedy_texts_of_all_three_models_after_the_same_rows(few, pair, evaluated):
    places = samples.chosen(few.rows["test"])
    rows, tokenizer = [few.rows["test"][i] for i in places], open_tokenizer(Path(few.workload.base_folder))

    def texts(model) -> list[str]:
        return [samples.shown(tokenizer.decode(t, skip_special_tokens=True)) for t in held_out.greedy(model, rows)]

    assert [sample.untuned for sample in evaluated.samples] == texts(few.base("16bit"))
    for name, precision, files in (("quantized", "nf4", pair[0]), ("baseline", "16bit", pair[1])):
        with compare.attached(few.base(precision), files) as model:
            assert [getattr(sample, name) for sample in evaluated.samples] == texts(model)
    for row, sample in zip(rows, evaluated.samples, strict=True):
        start, stop = row.responses[0]
        assert sample.response == samples.shown(tokenizer.decode(row.input_ids[start:stop], skip_special_tokens=True))
        assert sample.prompt.startswith("### Instruction:")


class OneBase:
    """A cache as on a GPU: a swap frees the base that was there, or else reports that something holds it."""

    def __init__(self, few: WorkerCache, n_rows: int) -> None:
        self.workload = few.workload
        self.rows = few.rows | {name: few.rows[name][:n_rows] for name in ("validation", "test")}
        self.readings, self.untuned_nats = Readings(), {}
        self.tokenizer, self.token_counts, self.bias_rows = few.tokenizer, few.token_counts, few.bias_rows
        self.swaps: list[str] = []
        self.held: list[str] = []
        self._base = None

    def reader(self, form, weights):
        raise CaptureFailed("no GPU")

    def base(self, precision, keep_16bit=()):
        if self.swaps[-1:] != [precision]:
            old = weakref.ref(self._base) if self._base else lambda: None
            self._base = None
            gc.collect()
            self.held += self.swaps[-1:] if old() else []
            self.swaps.append(precision)
            self.readings.clear()  # as WorkerCache.forget does
            self._base = base_model.load(self.workload, precision, "cpu")
        return self._base


def test_the_bases_are_swapped_once_and_the_first_is_freed(few, pair, replicates):
    for work in (
        lambda cache: compare.compare(cache, nf4=pair[0], baseline=pair[1]),
        lambda cache: compare.evaluate_on_test(
            cache, CONFIG, files=pair[0], baseline=pair[1], replicates=replicates[:1]
        ),
    ):
        own = OneBase(few, n_rows=3)
        work(own)
        assert own.swaps == ["16bit", "nf4"]
        assert own.held == []


@pytest.mark.parametrize("broken", PRECISIONS)
def test_a_comparison_that_fails_leaves_the_bases_untouched(few, pair, broken):
    before = {precision: state_of(few.base(precision)) for precision in PRECISIONS}
    rows = few.rows
    few.rows = rows | {"validation": []}
    try:
        with pytest.raises(ValueError, match="empty"):
            compare.compare(few, nf4=pair[0], baseline=pair[1])
    finally:
        few.rows = rows
    files = pair[PRECISIONS[::-1].index(broken)]
    with pytest.raises(RuntimeError, match="inside"), compare.attached(few.base(broken), files):
        raise RuntimeError("inside")
    for precision, state in before.items():
        assert_untouched(few.base(precision), state)
