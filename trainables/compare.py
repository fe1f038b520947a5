"""Two models on the same held-out rows: a 4-bit trial beside its 16-bit twin and the yardsticks.

All 16-bit work comes before all 4-bit work: a small GPU may hold one base at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainables import adapter, bias, evaluation, felt
from trainables.config import TrialConfig
from trainables.data import TokenRow
from trainables.findings import Comparison, Judgement
from trainables.similarity import RowScores, compare_rows, row_scores

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from trainables.trial import Bench

    Model = PreTrainedModel | PeftModel
    Known = tuple[list[list[int]], torch.Tensor]  # texts and states of a model, see _Reading

Texts = list[list[int]]
Adapter = Mapping[str, bytes]
"""peft's files by name, see trainables.adapter.to_files."""


def compare(bench: "Bench", *, nf4: Adapter, twin: Adapter) -> Comparison:
    """A 4-bit adapter and the untuned base against the 16-bit twin, on the search rows.

    Teacher-forced figures are of all rows, those of greedy text of the first N_DECODED_ROWS.

    Args:
        nf4, twin: each trained at its own precision.
    """
    rows = bench.rows["search"]
    yardsticks = _yardsticks(bench, rows, twin)
    with attached(bench.base("nf4"), nf4) as model:
        quantized, _ = _against(yardsticks.reference, model, rows)
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
        yardsticks = _yardsticks(bench, rows, twin, reseeds)
        twin_gaps = _twin_gaps(bench, twin)
    base = bench.base(config.precision)
    tokens = evaluation.response_tokens(base, rows)
    losses = {"untuned_row_nats": _row_nats(base, rows), "row_tokens": tuple(map(len, tokens))}
    with attached(base, files) as model:
        losses["row_nats"] = _row_nats(model, rows)
        if twin is None:
            return Judgement(**losses)
        quantized, token_kl = _against(yardsticks.reference, model, rows)
        gaps = bias.gaps(model, bench.workload.base_folder)
    return Judgement(
        **losses,
        comparison=compare_rows(quantized, yardsticks.untuned, yardsticks.reseeded),
        felt=felt.shares(
            token_kl, tokens, kinds=[row.kind for row in rows], seen=felt.token_counts(bench.rows["train"])
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
    bench: "Bench", rows: Sequence[TokenRow], twin: Adapter, reseeds: Sequence[Adapter] = ()
) -> _Yardsticks:
    base, decoded = bench.base("16bit"), rows[: evaluation.N_DECODED_ROWS]
    with attached(base, twin) as model:
        reference = _read(model, rows)
    if tuple(rows) not in bench.untuned:  # the same for every twin
        bench.untuned[tuple(rows)] = (evaluation.greedy(base, decoded), evaluation.response_states(base, rows))
    untuned, _ = _against(reference, base, rows, bench.untuned[tuple(rows)])
    reseeded = []
    for files in reseeds:
        with attached(base, files) as model:
            reseeded.append(_against(reference, model, rows)[0])
    return _Yardsticks(reference=reference, untuned=untuned, reseeded=tuple(reseeded))


def _twin_gaps(bench: "Bench", twin: Adapter) -> dict[str, NDArray[np.float64]]:
    """Gaps of the twin; in a function of its own, so that nothing holds the 16-bit base when the other is loaded."""
    with attached(bench.base("16bit"), twin) as model:
        return bias.gaps(model, bench.workload.base_folder)


def _read(
    model: "Model", rows: Sequence[TokenRow], reference: _Reading | None = None, known: "Known | None" = None
) -> _Reading:
    """Read the rows with one model; without a reference it is its own."""
    decoded = rows[: evaluation.N_DECODED_ROWS]
    texts, states = known or (evaluation.greedy(model, decoded), evaluation.response_states(model, rows))
    pooled = evaluation.pooled_states(model, decoded, reference.texts if reference else texts)
    return _Reading(texts=texts, pooled=pooled, states=states)


def _against(
    reference: _Reading, model: "Model", rows: Sequence[TokenRow], known: "Known | None" = None
) -> tuple[RowScores, NDArray[np.float64]]:
    """Scores of a model against the reference, and KL(reference || model) of each response token in nats."""
    ours = _read(model, rows, reference, known)
    token_kl, token_same = evaluation.divergence(model, ours.states, reference.states)
    scores = row_scores(
        texts=ours.texts,
        reference_texts=reference.texts,
        states=ours.pooled,
        reference_states=reference.pooled,
        token_kl=token_kl,
        token_same=token_same,
        row_of_token=_row_of_token(evaluation.response_tokens(model, rows)),
    )
    return scores, token_kl


def _row_nats(model: "Model", rows: Sequence[TokenRow]) -> tuple[float, ...]:
    """Summed loss over the response tokens of each row."""
    tokens = evaluation.response_tokens(model, rows)
    states = evaluation.response_states(model, rows)
    losses = evaluation.token_losses(model, states, list(chain.from_iterable(tokens)))
    return tuple(np.bincount(_row_of_token(tokens), weights=losses, minlength=len(rows)).tolist())


def _row_of_token(tokens: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(tokens)), [len(row) for row in tokens])


@contextmanager
def attached(base: "PreTrainedModel", files: Adapter) -> "Iterator[PeftModel]":
    """The base with an adapter from files; without it again afterwards, whatever happened inside."""
    model = adapter.from_files(base, files)
    try:
        yield model
    finally:
        adapter.detach(model)
