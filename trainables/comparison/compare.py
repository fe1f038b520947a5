"""Compare a 4-bit trial with its 16-bit baseline, and evaluate a finished trial on the test rows.

All 16-bit work comes before all 4-bit work: a small GPU may hold one base at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainables.comparison import bias, kl_breakdown
from trainables.comparison.samples import samples
from trainables.comparison.similarity import RowScores, compare_rows, row_scores
from trainables.evaluation import held_out
from trainables.evaluation.held_out import divergence, response_states, response_tokens, token_losses
from trainables.evaluation.readers import EagerReader, Reader, Texts
from trainables.models import lora
from trainables.values.config import BaseForm, TrialConfig
from trainables.values.errors import CaptureFailed
from trainables.values.findings import Comparison, KlShare, Sample, TestEvaluation

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from trainables.data.tokens import TokenRow
    from trainables.worker_cache import WorkerCache

    Model = PreTrainedModel | PeftModel
    TextsAndStates = tuple[Texts, torch.Tensor]  # see _ModelOutputs

Adapter = Mapping[str, bytes]
"""peft's files by name, see trainables.models.lora.to_files."""
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
    references = _references(cache, rows, baseline)
    form: BaseForm = ("nf4", keep_16bit)
    with _reader(cache, rows, form, nf4) as reader:
        quantized, _ = _against(references.reference, reader, cache.base(*form), rows)
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
    rows = cache.rows["test"]
    losses = {"row_groups": tuple(row.group for row in rows)}
    if baseline is not None:
        references = _references(cache, rows, baseline, replicates)
        losses |= _baseline_losses(cache, rows, references)
        baseline_gaps = _gaps(cache, EXACT, baseline)
    base = cache.base(*config.base_form)
    tokens = response_tokens(base, rows)
    losses |= {"untuned_row_nats": _untuned_nats(cache, config.base_form, rows), "row_tokens": tuple(map(len, tokens))}
    with _reader(cache, rows, config.base_form, files) as reader:
        states = reader.states()
        losses["row_nats"] = _nats_of(base, rows, states)
        if baseline is None:
            return TestEvaluation(**losses)
        outputs = reader.texts(), states
        quantized, token_kl = _against(references.reference, reader, base, rows, outputs)
    gaps = _gaps(cache, config.base_form, files)
    return TestEvaluation(
        **losses,
        comparison=compare_rows(quantized, references.untuned, references.replicates),
        breakdown=_breakdown(cache, rows, tokens, token_kl),
        bias=bias.shifts(baseline_gaps, gaps),
        samples=_samples(cache, rows, references, outputs[0]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelOutputs:
    """The outputs of one model for some rows.

    Attributes:
        texts: greedy continuations of the first N_DECODED_ROWS prompts.
        pooled: (n_decoded_rows, width), mean states over the reference's texts.
        states: (n_response_tokens, width), on the model's device.
    """

    texts: Texts
    pooled: NDArray[np.float32]
    states: "torch.Tensor"


@dataclass(frozen=True, slots=True, kw_only=True)
class _References:
    """The 16-bit side of a comparison.

    Attributes:
        reference: outputs of the baseline.
        untuned: scores of the base without an adapter against the reference.
        replicates: scores of the baseline's seed replicates against the reference.
        untuned_texts: of the base without an adapter; kept, as its worker may give up all else for the other base.
    """

    reference: _ModelOutputs
    untuned_texts: Texts
    untuned: RowScores
    replicates: tuple[RowScores, ...]


def _references(
    cache: "WorkerCache", rows: "Sequence[TokenRow]", baseline: Adapter, replicates: Sequence[Adapter] = ()
) -> _References:
    base = cache.base("16bit")
    with _reader(cache, rows, EXACT, baseline) as reader:
        reference = _outputs(reader)
    with _reader(cache, rows, EXACT, None) as reader:
        if tuple(rows) not in cache.untuned:  # the same for every baseline
            cache.untuned[tuple(rows)] = (reader.texts(), reader.states())
        untuned, _ = _against(reference, reader, base, rows, cache.untuned[tuple(rows)])
        untuned_texts, _ = cache.untuned[tuple(rows)]
    replicate_scores = []
    for files in replicates:
        with _reader(cache, rows, EXACT, files) as reader:
            replicate_scores.append(_against(reference, reader, base, rows)[0])
    scores = {"untuned": untuned, "replicates": tuple(replicate_scores)}
    return _References(reference=reference, untuned_texts=untuned_texts, **scores)


def _baseline_losses(
    cache: "WorkerCache", rows: "Sequence[TokenRow]", references: _References
) -> dict[str, tuple[float, ...]]:
    """Summed losses of each row at 16 bits, from the states that were read already."""
    return {
        "baseline_row_nats": _nats_of(cache.base("16bit"), rows, references.reference.states),
        "baseline_untuned_row_nats": _untuned_nats(cache, EXACT, rows),
    }


def _breakdown(
    cache: "WorkerCache", rows: "Sequence[TokenRow]", tokens: Sequence[Sequence[int]], token_kl: NDArray[np.float64]
) -> tuple[KlShare, ...]:
    """Where quantization shows, from the KL of each response token."""
    return kl_breakdown.shares(
        token_kl,
        tokens,
        kinds=[row.kind for row in rows],
        groups=[row.group for row in rows],
        counts=cache.token_counts,
    )


def _samples(
    cache: "WorkerCache", rows: "Sequence[TokenRow]", references: _References, quantized: Texts
) -> tuple[Sample, ...]:
    """What the three models write, from the texts that were read already."""
    return samples(
        rows,
        cache.tokenizer,
        quantized=quantized,
        baseline=references.reference.texts,
        untuned=references.untuned_texts,
    )


def _gaps(cache: "WorkerCache", form: BaseForm, files: Adapter) -> dict[str, NDArray[np.float64]]:
    """See bias.gaps; a function of its own, so that no local keeps the 16-bit base when the other is loaded."""
    base, workload = cache.base(*form), cache.workload
    rows = bias.prompt_rows(workload.base_folder, workload.row_kind, held_out.eval_length(base))
    if not rows:
        return {}
    with _reader(cache, rows, form, files, n_decoded=0) as reader:
        return bias.gaps(base, reader.states())


def _outputs(
    reader: Reader, reference: _ModelOutputs | None = None, cached: "TextsAndStates | None" = None
) -> _ModelOutputs:
    """Read the rows.

    Args:
        reference: whose texts are pooled over; the model's own texts if None.
        cached: the model's texts and states, if they were read before.
    """
    texts, states = cached or (reader.texts(), reader.states())
    return _ModelOutputs(texts=texts, pooled=reader.pooled(reference.texts if reference else texts), states=states)


def _against(
    reference: _ModelOutputs,
    reader: Reader,
    base: "PreTrainedModel",
    rows: "Sequence[TokenRow]",
    cached: "TextsAndStates | None" = None,
) -> tuple[RowScores, NDArray[np.float64]]:
    """Scores of a model against the reference, and KL(reference || model) of each response token in nats."""
    ours = _outputs(reader, reference, cached)
    token_kl, token_same = divergence(base, ours.states, reference.states)
    scores = row_scores(
        texts=ours.texts,
        reference_texts=reference.texts,
        states=ours.pooled,
        reference_states=reference.pooled,
        token_kl=token_kl,
        token_same=token_same,
        row_of_token=_row_of_token(response_tokens(base, rows)),
        groups=[row.group for row in rows],
    )
    return scores, token_kl


def _untuned_nats(cache: "WorkerCache", form: BaseForm, rows: "Sequence[TokenRow]") -> tuple[float, ...]:
    """`_nats_of` by the base without an adapter: the same for every trial."""
    key = form, tuple(rows)
    if key not in cache.untuned_nats:
        base, read = cache.base(*form), cache.untuned.get(tuple(rows)) if form == EXACT else None
        cache.untuned_nats[key] = _nats_of(base, rows, read[1] if read else response_states(base, rows))
    return cache.untuned_nats[key]


def _nats_of(model: "Model", rows: "Sequence[TokenRow]", states: "torch.Tensor") -> tuple[float, ...]:
    """Summed loss over the response tokens of each row, from its `response_states` by the model's own head."""
    tokens = response_tokens(model, rows)
    losses = token_losses(model, states, list(chain.from_iterable(tokens)))
    return tuple(np.bincount(_row_of_token(tokens), weights=losses, minlength=len(rows)).tolist())


def _row_of_token(tokens: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """(n_tokens,), the row that each token is in, from 0."""
    return np.repeat(np.arange(len(tokens)), [len(row) for row in tokens])


@contextmanager
def _reader(
    cache: "WorkerCache",
    rows: "Sequence[TokenRow]",
    form: BaseForm,
    files: Adapter | None,
    n_decoded: int = held_out.N_DECODED_ROWS,
) -> Iterator[Reader]:
    """Reads rows, and decodes none or the usual ones: by CUDA graphs where they can be captured, else eagerly."""
    try:
        weights = lora.read_files(files) if files is not None else None
        graph_reader = cache.reader(rows, form, weights, n_decoded=n_decoded)
    except CaptureFailed:
        with _eager_reader(cache, rows, form, files) as reader:
            yield reader
    else:
        yield graph_reader


@contextmanager
def _eager_reader(
    cache: "WorkerCache", rows: "Sequence[TokenRow]", form: BaseForm, files: Adapter | None
) -> Iterator[Reader]:
    """Reads with an adapter from files, or with the base alone."""
    base = cache.base(*form)
    if files is None:
        yield EagerReader(base, rows)
        return
    with attached(base, files) as model:
        yield EagerReader(model, rows)


@contextmanager
def attached(base: "PreTrainedModel", files: Adapter) -> "Iterator[PeftModel]":
    """The base with an adapter from files; without it again afterwards, whatever happened inside."""
    model = lora.from_files(base, files)
    try:
        yield model
    finally:
        lora.detach(model)
