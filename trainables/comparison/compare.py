"""Two models on the same held-out rows: a 4-bit trial beside its 16-bit twin and the yardsticks.

All 16-bit work comes before all 4-bit work: a small GPU may hold one base at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainables.capture.capture import Unrecordable
from trainables.comparison import bias, kl_breakdown
from trainables.comparison.similarity import RowScores, compare_rows, row_scores
from trainables.data.tokens import TokenRow
from trainables.evaluation import held_out
from trainables.evaluation.readers import EagerReader, Reader, Texts
from trainables.models import lora
from trainables.values.config import Precision, TrialConfig
from trainables.values.findings import Comparison, Judgement

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from trainables.worker_cache import Bench

    Model = PreTrainedModel | PeftModel
    Known = tuple[Texts, torch.Tensor]  # texts and states of a model, see _Reading

Adapter = Mapping[str, bytes]
"""peft's files by name, see trainables.models.lora.to_files."""
Read = Callable[[Precision, Adapter | None], AbstractContextManager[Reader]]
"""Some rows before a base with an adapter, or alone."""


def compare(bench: "Bench", *, nf4: Adapter, twin: Adapter) -> Comparison:
    """A 4-bit adapter and the untuned base against the 16-bit twin, on the search rows.

    Teacher-forced figures are of all rows, those of greedy text of the first N_DECODED_ROWS.

    Args:
        nf4, twin: each trained at its own precision.
    """
    rows, read = bench.rows["search"], partial(_reader, bench)
    yardsticks = _yardsticks(bench, rows, read, twin)
    with read("nf4", nf4) as reader:
        quantized, _ = _against(yardsticks.reference, reader, bench.base("nf4"), rows)
    return compare_rows(quantized, yardsticks.untuned)


def judge(
    bench: "Bench",
    config: TrialConfig,
    *,
    files: Adapter,
    twin: Adapter | None = None,
    reseeds: Sequence[Adapter] = (),
) -> Judgement:
    """A finished trial on the report rows.

    Args:
        files: the trial's adapter.
        twin: the adapter of its 16-bit twin; without it there is no comparison.
        reseeds: adapters of the twin's config under other seeds.
    """
    rows = bench.rows["report"]
    if twin is not None:
        yardsticks = _yardsticks(bench, rows, partial(_eager_reader, bench, rows), twin, reseeds)
        twin_gaps = _twin_gaps(bench, twin)
    base = bench.base(config.precision)
    tokens = held_out.response_tokens(base, rows)
    losses = {"untuned_row_nats": _row_nats(base, rows), "row_tokens": tuple(map(len, tokens))}
    with attached(base, files) as model:
        losses["row_nats"] = _row_nats(model, rows)
        if twin is None:
            return Judgement(**losses)
        quantized, token_kl = _against(yardsticks.reference, EagerReader(model, rows), base, rows)
        gaps = bias.gaps(model, bench.workload.base_folder)
    return Judgement(
        **losses,
        comparison=compare_rows(quantized, yardsticks.untuned, yardsticks.reseeded),
        felt=kl_breakdown.shares(
            token_kl, tokens, kinds=[row.kind for row in rows], seen=kl_breakdown.token_counts(bench.rows["train"])
        ),
        bias=bias.shifts(twin_gaps, gaps),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """What one model does on some rows.

    Attributes:
        texts: greedy continuations of the first N_DECODED_ROWS prompts.
        pooled: (n_decoded_rows, width), mean states over the reference's texts.
        states: (n_response_tokens, width), on the model's device.
    """

    texts: Texts
    pooled: NDArray[np.float32]
    states: "torch.Tensor"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Yardsticks:
    """The 16-bit side: the twin, and how far the untuned base and other seeds are from it."""

    reference: _Reading
    untuned: RowScores
    reseeded: tuple[RowScores, ...]


def _yardsticks(
    bench: "Bench", rows: Sequence[TokenRow], read: Read, twin: Adapter, reseeds: Sequence[Adapter] = ()
) -> _Yardsticks:
    base = bench.base("16bit")
    with read("16bit", twin) as reader:
        reference = _read(reader)
    with read("16bit", None) as reader:
        if tuple(rows) not in bench.untuned:  # the same for every twin
            bench.untuned[tuple(rows)] = (reader.texts(), reader.states())
        untuned, _ = _against(reference, reader, base, rows, bench.untuned[tuple(rows)])
    reseeded = []
    for files in reseeds:
        with read("16bit", files) as reader:
            reseeded.append(_against(reference, reader, base, rows)[0])
    return _Yardsticks(reference=reference, untuned=untuned, reseeded=tuple(reseeded))


def _twin_gaps(bench: "Bench", twin: Adapter) -> dict[str, NDArray[np.float64]]:
    """Gaps of the twin; in a function of its own, so that nothing holds the 16-bit base when the other is loaded."""
    with attached(bench.base("16bit"), twin) as model:
        return bias.gaps(model, bench.workload.base_folder)


def _read(reader: Reader, reference: _Reading | None = None, known: "Known | None" = None) -> _Reading:
    """Read the rows; without a reference the model is its own."""
    texts, states = known or (reader.texts(), reader.states())
    return _Reading(texts=texts, pooled=reader.pooled(reference.texts if reference else texts), states=states)


def _against(
    reference: _Reading,
    reader: Reader,
    base: "PreTrainedModel",
    rows: Sequence[TokenRow],
    known: "Known | None" = None,
) -> tuple[RowScores, NDArray[np.float64]]:
    """Scores of a model against the reference, and KL(reference || model) of each response token in nats."""
    ours = _read(reader, reference, known)
    token_kl, token_same = held_out.divergence(base, ours.states, reference.states)
    scores = row_scores(
        texts=ours.texts,
        reference_texts=reference.texts,
        states=ours.pooled,
        reference_states=reference.pooled,
        token_kl=token_kl,
        token_same=token_same,
        row_of_token=_row_of_token(held_out.response_tokens(base, rows)),
    )
    return scores, token_kl


def _row_nats(model: "Model", rows: Sequence[TokenRow]) -> tuple[float, ...]:
    """Summed loss over the response tokens of each row."""
    tokens = held_out.response_tokens(model, rows)
    states = held_out.response_states(model, rows)
    losses = held_out.token_losses(model, states, list(chain.from_iterable(tokens)))
    return tuple(np.bincount(_row_of_token(tokens), weights=losses, minlength=len(rows)).tolist())


def _row_of_token(tokens: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(tokens)), [len(row) for row in tokens])


@contextmanager
def _reader(bench: "Bench", precision: Precision, files: Adapter | None) -> Iterator[Reader]:
    """Reads the search rows: recorded where that can be, else as `_eager_reader`."""
    try:
        recorded = bench.reader(precision, lora.read_files(files) if files is not None else None)
    except Unrecordable:
        with _eager_reader(bench, bench.rows["search"], precision, files) as reader:
            yield reader
    else:
        yield recorded


@contextmanager
def _eager_reader(
    bench: "Bench", rows: Sequence[TokenRow], precision: Precision, files: Adapter | None
) -> Iterator[Reader]:
    """Reads with an adapter from files, or with the base alone."""
    base = bench.base(precision)
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
