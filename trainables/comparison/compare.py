"""Compare a 4-bit trial with its 16-bit baseline, and evaluate a finished trial on the test rows.

All 16-bit work comes before all 4-bit work: a small GPU may hold one base at a time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainables.comparison import bias, kl_breakdown
from trainables.comparison.samples import samples
from trainables.comparison.similarity import RowScores, compare_rows, row_scores
from trainables.evaluation.held_out import divergence, response_states, response_tokens, token_losses
from trainables.evaluation.readers import EagerReader, Reader, Rows, Texts
from trainables.evaluation.readings import Adapter, Reading
from trainables.models import lora
from trainables.values.config import BaseForm, TrialConfig
from trainables.values.errors import CaptureFailed
from trainables.values.findings import Comparison, KlShare, Sample, TestEvaluation

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from trainables.worker_cache import WorkerCache

    Model = PreTrainedModel | PeftModel

EXACT: BaseForm = ("16bit", ())
"""The base at 16 bits."""


def compare(cache: "WorkerCache", *, nf4: Adapter, baseline: Adapter, keep_16bit: tuple[str, ...] = ()) -> Comparison:
    """A 4-bit adapter and the untuned base against the 16-bit baseline, on the validation rows.

    Teacher-forced figures are of all rows, those of greedy text of the first N_DECODED_ROWS.

    Args:
        nf4, baseline: adapters, each trained at its own precision.
        keep_16bit: of the 4-bit trial's config.
    """
    rows = cache.rows["validation"]
    references = _references(cache, rows, baseline, is_kept=False)  # of a pair that is compared once
    form: BaseForm = ("nf4", keep_16bit)
    with _reader(cache, form, nf4) as reader:
        quantized, _ = _against(references.baseline, cache.base(*form), rows, reader, Reading.by(reader, rows))
    return compare_rows(quantized, references.untuned)


def evaluate_on_test(
    cache: "WorkerCache",
    config: TrialConfig,
    *,
    files: Adapter,
    baseline: Adapter | None = None,
    replicates: Sequence[Adapter] = (),
) -> TestEvaluation:
    """A finished trial on the test rows.

    Args:
        files: the trial's adapter.
        baseline: the adapter of its 16-bit baseline; without it there is no comparison.
        replicates: adapters of the baseline's config under other seeds.
    """
    rows, form = cache.rows["test"], config.base_form
    losses = {"row_groups": tuple(row.group for row in rows)}
    if baseline is not None:
        references = _references(cache, rows, baseline, replicates, cache.bias_rows, is_kept=True)
        losses |= _baseline_losses(cache, rows, references)
    base = cache.base(*form)
    tokens = response_tokens(base, rows)
    losses |= {"untuned_row_nats": _untuned_nats(cache, form, rows), "row_tokens": tuple(map(len, tokens))}
    with _reader(cache, form, files) as reader:
        if baseline is None:
            return TestEvaluation(**losses, row_nats=_nats_of(base, rows, reader.states(rows)))
        reading = Reading.by(reader, rows)
        quantized, token_kl = _against(references.baseline, base, rows, reader, reading)
        gaps = _gaps(base, reader, cache.bias_rows)
    return TestEvaluation(
        **losses,
        row_nats=_nats_of(base, rows, reading.states),
        comparison=compare_rows(quantized, references.untuned, references.replicates),
        breakdown=_breakdown(cache, rows, tokens, token_kl),
        bias=bias.shifts(references.baseline.gaps, gaps),
        samples=_samples(cache, rows, references, reading.texts),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Baseline:
    """What the 16-bit baseline made of some rows.

    Attributes:
        reading: its texts and states.
        pooled: (n_decoded_rows, width), its mean states over its own texts.
        gaps: see bias.gaps; empty where none are asked for.
    """

    reading: Reading
    pooled: NDArray[np.float32]
    gaps: dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _References:
    """The 16-bit side of a comparison.

    Attributes:
        untuned: scores of the base without an adapter against the baseline.
        untuned_texts: of the base without an adapter; kept, as its worker may give up all else for the other base.
        replicates: scores of the baseline's seed replicates against it.
    """

    baseline: _Baseline
    untuned: RowScores
    untuned_texts: Texts
    replicates: tuple[RowScores, ...]


def _references(
    cache: "WorkerCache",
    rows: Rows,
    files: Adapter,
    replicates: Sequence[Adapter] = (),
    bias_rows: Rows = (),
    *,
    is_kept: bool,
) -> _References:
    """See _References.

    Args:
        files, replicates: adapters of the baseline and of its seed replicates.
        bias_rows: of the probe of bias, for the baseline's gaps.
        is_kept: what the baseline makes of the rows is kept: it will be asked again.
    """
    base = cache.base("16bit")
    with _reader(cache, EXACT, files) as reader:
        reading = cache.readings.of(reader, rows, files) if is_kept else Reading.by(reader, rows)
        pooled, gaps = reader.pooled(rows, reading.texts), _gaps(base, reader, bias_rows)
        baseline = _Baseline(reading=reading, pooled=pooled, gaps=gaps)
    with _reader(cache, EXACT, None) as reader:
        alone = cache.readings.of(reader, rows, None)
        untuned, _ = _against(baseline, base, rows, reader, alone)
    scores: list[RowScores] = []
    for other in replicates:
        with _reader(cache, EXACT, other) as reader:
            scores.append(_against(baseline, base, rows, reader, cache.readings.of(reader, rows, other))[0])
    return _References(baseline=baseline, untuned=untuned, untuned_texts=alone.texts, replicates=tuple(scores))


def _baseline_losses(cache: "WorkerCache", rows: Rows, references: _References) -> dict[str, tuple[float, ...]]:
    """Summed losses of each row at 16 bits, from the states that were read already."""
    return {
        "baseline_row_nats": _nats_of(cache.base("16bit"), rows, references.baseline.reading.states),
        "baseline_untuned_row_nats": _untuned_nats(cache, EXACT, rows),
    }


def _breakdown(
    cache: "WorkerCache", rows: Rows, tokens: Sequence[Sequence[int]], token_kl: NDArray[np.float64]
) -> tuple[KlShare, ...]:
    """Where quantization shows, from the KL of each response token."""
    return kl_breakdown.shares(
        token_kl,
        tokens,
        kinds=[row.kind for row in rows],
        groups=[row.group for row in rows],
        counts=cache.token_counts,
    )


def _samples(cache: "WorkerCache", rows: Rows, references: _References, quantized: Texts) -> tuple[Sample, ...]:
    """What the three models write, from the texts that were read already."""
    return samples(
        rows,
        cache.tokenizer,
        quantized=quantized,
        baseline=references.baseline.reading.texts,
        untuned=references.untuned_texts,
    )


def _gaps(base: "PreTrainedModel", reader: Reader, rows: Rows) -> dict[str, NDArray[np.float64]]:
    """See bias.gaps; empty where there are no rows for it."""
    return bias.gaps(base, reader.states(rows)) if rows else {}


def _against(
    baseline: _Baseline, base: "PreTrainedModel", rows: Rows, reader: Reader, reading: Reading
) -> tuple[RowScores, NDArray[np.float64]]:
    """Scores of a model against the baseline, and KL(baseline || model) of each response token in nats.

    Args:
        base: gives the head.
        reader, reading: of the model.
    """
    token_kl, token_same = divergence(base, reading.states, baseline.reading.states)
    scores = row_scores(
        texts=reading.texts,
        reference_texts=baseline.reading.texts,
        states=reader.pooled(rows, baseline.reading.texts),
        reference_states=baseline.pooled,
        token_kl=token_kl,
        token_same=token_same,
        row_of_token=_row_of_token(response_tokens(base, rows)),
        groups=[row.group for row in rows],
    )
    return scores, token_kl


def _untuned_nats(cache: "WorkerCache", form: BaseForm, rows: Rows) -> tuple[float, ...]:
    """`_nats_of` by the base without an adapter: the same for every trial."""
    key = form, tuple(rows)
    if key not in cache.untuned_nats:
        base, reading = cache.base(*form), cache.readings.of_base(rows) if form == EXACT else None
        cache.untuned_nats[key] = _nats_of(base, rows, reading.states if reading else response_states(base, rows))
    return cache.untuned_nats[key]


def _nats_of(model: "Model", rows: Rows, states: "torch.Tensor") -> tuple[float, ...]:
    """Summed loss over the response tokens of each row, from its `response_states` by the model's own head."""
    tokens = response_tokens(model, rows)
    losses = token_losses(model, states, list(chain.from_iterable(tokens)))
    return tuple(np.bincount(_row_of_token(tokens), weights=losses, minlength=len(rows)).tolist())


def _row_of_token(tokens: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """(n_tokens,), the row that each token is in, from 0."""
    return np.repeat(np.arange(len(tokens)), [len(row) for row in tokens])


@contextmanager
def _reader(cache: "WorkerCache", form: BaseForm, files: Adapter | None) -> Iterator[Reader]:
    """Reads with an adapter, or with the base alone: by CUDA graphs where they can be captured, else eagerly."""
    try:
        graph_reader = cache.reader(form, lora.read_files(files) if files is not None else None)
    except CaptureFailed:
        with _eager_reader(cache, form, files) as reader:
            yield reader
    else:
        yield graph_reader


@contextmanager
def _eager_reader(cache: "WorkerCache", form: BaseForm, files: Adapter | None) -> Iterator[Reader]:
    base = cache.base(*form)
    if files is None:
        yield EagerReader(base)
        return
    with attached(base, files) as model:
        yield EagerReader(model)


@contextmanager
def attached(base: "PreTrainedModel", files: Adapter) -> "Iterator[PeftModel]":
    """The base with an adapter from files; without it again afterwards, whatever happened inside."""
    model = lora.from_files(base, files)
    try:
        yield model
    finally:
        lora.detach(model)
