"""What a model makes of some rows: greedy text, response states, pooled states; eagerly, or by CUDA graphs.

A GraphReader captures its graphs once on the bare base, as trainables.training.step_graphs.StepGraphs does, and then
reads with one adapter after another: no Python runs again and no adapter is attached.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.capture.capture import attached_matrices, captured, on_stream
from trainables.data.tokens import TokenRow
from trainables.evaluation import held_out
from trainables.evaluation.decoding import GreedyDecoder
from trainables.models.architecture import context_of
from trainables.models.core import end_tokens, padding_token
from trainables.models.lean import lean_modules
from trainables.models.lora import AdapterWeights, blank_matrices, name_in_file

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from trainables.values.config import TrialConfig

Value = TypeVar("Value")
Texts = list[list[int]]
"""Tokens of each row's greedy continuation."""


Rows = Sequence[TokenRow]


class Reader(Protocol):
    """Reads sets of rows with one model; the first rows of a set, N_DECODED_ROWS at most, can be decoded too."""

    def texts(self, rows: Rows) -> Texts:
        """Greedy continuations, one a decoded row, see held_out.greedy."""

    def states(self, rows: Rows) -> torch.Tensor:
        """(n_response_tokens, width) on the model's device, see held_out.response_states."""

    def pooled(self, rows: Rows, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """(n_decoded_rows, width), the mean state over each row's text, see held_out.pooled_states."""


@dataclass(frozen=True, slots=True)
class EagerReader:
    """Reads one operation at a time, as PyTorch executes Python."""

    model: "PreTrainedModel | PeftModel"

    def texts(self, rows: Rows) -> Texts:
        return held_out.greedy(self.model, rows[: held_out.N_DECODED_ROWS])

    def states(self, rows: Rows) -> torch.Tensor:
        return held_out.response_states(self.model, rows)

    def pooled(self, rows: Rows, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        return held_out.pooled_states(self.model, rows[: held_out.N_DECODED_ROWS], texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSets:
    """The sets of rows that graph readers are captured for, of one row at least each.

    Attributes:
        decoded: one set at least, whose first rows can be decoded.
        others: whose states alone are read.
    """

    decoded: tuple[tuple[TokenRow, ...], ...]
    others: tuple[tuple[TokenRow, ...], ...] = ()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SetBuffers:
    """One set of rows on a GPU.

    Attributes:
        batches: all rows.
        states: (n_response_tokens, width), output of GraphReader.states.
        prompts: one a place of ReaderBuffers, the shortest first; none of a set that is not decoded.
        rows: the row that each prompt is of.
    """

    batches: held_out.EvalBatches
    states: torch.Tensor
    prompts: Sequence[Sequence[int]] = ()
    rows: Sequence[int] = ()

    def by_row(self, values: Sequence[Value]) -> list[Value]:
        """What there is of each place, by rows."""
        of_row = dict(zip(self.rows, values, strict=True))
        return [of_row[row] for row in range(len(of_row))]

    def by_place(self, values: Sequence[Value]) -> list[Value]:
        """What there is of each decoded row, by places."""
        return [values[row] for row in self.rows]


class ReaderBuffers:
    """Inputs and outputs of graph readers on a GPU; all readers of a worker cache share them.

    Sets are decoded in the same places, one set at a time: as many places as the largest needs, as wide as the longest
    prompt, and in each set the shortest prompts in the first, so that little is padding. Its shortest prompt has what
    places a smaller set leaves, too.

    Attributes:
        sets: by their rows.
        decoder: of one set's prompts at a time.
        continuations: the places, each for a prompt with its text, in batches.
        pooled: (n_places, width) float32, output of GraphReader.pooled.
    """

    def __init__(self, base: "PreTrainedModel", sets: RowSets) -> None:
        n_places = min(max(map(len, sets.decoded)), held_out.N_DECODED_ROWS)
        self.sets = {rows: _on_device(base, rows, n_places) for rows in sets.decoded}
        self.sets |= {rows: _on_device(base, rows, 0) for rows in sets.others if rows not in self.sets}
        prompts = [own.prompts for own in self.sets.values() if own.prompts]
        n_new, ends = held_out.MAX_NEW_TOKENS, end_tokens(base)
        self.decoder = GreedyDecoder(base, max(prompts, key=lambda own: len(own[-1])), n_new=n_new, ends=ends)
        self.pooled = torch.zeros(n_places, base.config.hidden_size, device=base.device)
        longest = [max(map(len, at_place)) for at_place in zip(*prompts, strict=True)]
        n_positions, pad = context_of(base.config), padding_token(base)
        lengths = [min(n_tokens + n_new, n_positions) for n_tokens in longest]  # with the longest text that may follow
        groups = held_out.grouped_by_length(lengths, held_out.BATCH_TOKENS[base.device.type])
        self.continuations = [
            ContinuationBatch(group, length=lengths[group[-1]], pad=pad, device=base.device) for group in groups
        ]

    def set_prompts(self, rows: Rows) -> None:
        """Decode this set from now on."""
        self.decoder.set_prompts(self.sets[tuple(rows)].prompts)

    def texts(self, rows: Rows) -> Texts:
        """The continuations of this set's prompts, which were decoded last."""
        return self.sets[tuple(rows)].by_row(self.decoder.texts())

    def set_texts(self, rows: Rows, texts: Sequence[Sequence[int]]) -> None:
        """Set the text that follows each prompt of a set in `continuations`."""
        own = self.sets[tuple(rows)]
        for batch in self.continuations:
            batch.set_texts(own.prompts, own.by_place(texts))

    def pooled_of(self, rows: Rows) -> NDArray[np.float32]:
        """(n_decoded_rows, width) of this set, which was pooled last."""
        return np.stack(self.sets[tuple(rows)].by_row(list(self.pooled.cpu().numpy())))


def _on_device(base: "PreTrainedModel", rows: tuple[TokenRow, ...], n_places: int) -> SetBuffers:
    """A set; without places it is not decoded."""
    batches = held_out.eval_batches(base, rows)
    states = torch.zeros(batches.n_tokens, base.config.hidden_size, dtype=base.dtype, device=base.device)
    if not n_places:
        return SetBuffers(batches=batches, states=states)
    prompts = held_out.prompts_of(rows[: held_out.N_DECODED_ROWS])
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    order = [*order[:1] * (n_places - len(order)), *order]
    return SetBuffers(batches=batches, states=states, prompts=[prompts[row] for row in order], rows=order)


class ContinuationBatch:
    """Places for prompts of about equal length, each followed by a text, on a GPU.

    Attributes:
        places: (n_places,), their numbers.
        ids: (n_places, length), tokens, padded on the right.
        weights: (n_places, length) float32, 1 at the positions of a text, else 0.
    """

    def __init__(self, places: Sequence[int], *, length: int, pad: int, device: torch.device) -> None:
        self._places, self._pad = tuple(places), pad
        self.places = torch.tensor(places, device=device)
        self.ids = torch.full((len(places), length), pad, device=device)
        self.weights = torch.ones((len(places), length), device=device)

    def set_texts(self, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> None:
        """Set `ids` and `weights`.

        Args:
            prompts, texts: of all places, not of this batch alone.
        """
        ids, weights = torch.full(self.ids.shape, self._pad), torch.zeros(self.weights.shape)
        for i, place in enumerate(self._places):
            prompt, continued = prompts[place], [*prompts[place], *texts[place]]
            ids[i, : len(continued)] = torch.tensor(continued)
            weights[i, len(prompt) : len(continued)] = 1.0
        self.ids.copy_(ids)
        self.weights.copy_(weights)


class GraphReader:
    """Reads the sets of ReaderBuffers with the adapter that was loaded last, by replaying CUDA graphs."""

    def __init__(
        self,
        base: "PreTrainedModel",
        config: "TrialConfig",
        buffers: ReaderBuffers,
        *,
        pool: tuple[int, int],
        stream: torch.cuda.Stream,
    ) -> None:
        """
        Args:
            base: without an adapter.
            config: its targets and rank are at least those of every adapter that is loaded.
            pool, stream: see trainables.training.step_graphs.StepGraphs.
        """
        self._buffers = buffers
        self._pool, self._stream = pool, stream
        blank = blank_matrices(base, config).items()
        self._weights = {n: torch.nn.Parameter(w.to(base.dtype), requires_grad=False) for n, w in blank}
        with attached_matrices(base, config, self._weights, scaling=1.0) as model, torch.no_grad():
            model.eval()
            self._states = {rows: self._captured(partial(self._read, model, own)) for rows, own in buffers.sets.items()}
            self._first = self._captured(partial(_decode, model, buffers.decoder.first))
            self._next = self._captured(partial(_decode, model, buffers.decoder.next))
            self._pooled = self._captured(partial(self._pool_states, model))

    def _captured(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        """The work as a graph; it is done once before, for libraries and the KV cache to allocate what they keep."""
        with on_stream(self._stream):
            work()
        return captured(work, pool=self._pool, stream=self._stream)

    def _read(self, model: "PeftModel", own: SetBuffers) -> None:
        own.states.copy_(held_out.states_of(model, own.batches))

    def _pool_states(self, model: "PeftModel") -> None:
        for batch in self._buffers.continuations:
            means = held_out.mean_states(model, batch.ids, batch.weights)
            self._buffers.pooled.index_copy_(0, batch.places, means)

    @torch.no_grad()
    def load(self, weights: AdapterWeights | None) -> None:
        """Read with this adapter from now on; with None, as the base alone."""
        for name, padded in self._weights.items():
            padded.zero_()
            matrix = weights.matrices.get(name_in_file(name)) if weights is not None else None
            if matrix is not None:  # else the adapter leaves this module as it is
                if ".lora_B." in name:
                    matrix = matrix * weights.scaling
                padded[: matrix.shape[0], : matrix.shape[1]].copy_(matrix)

    def texts(self, rows: Rows) -> Texts:
        self._buffers.set_prompts(rows)
        self._first.replay()
        for _ in range(held_out.MAX_NEW_TOKENS - 1):
            self._next.replay()
        return self._buffers.texts(rows)

    def states(self, rows: Rows) -> torch.Tensor:
        self._states[tuple(rows)].replay()
        return self._buffers.sets[tuple(rows)].states.clone()

    def pooled(self, rows: Rows, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self._buffers.set_texts(rows, texts)
        self._pooled.replay()
        return self._buffers.pooled_of(rows)


def _decode(model: "PeftModel", step: "Callable[[PreTrainedModel], object]") -> None:
    """One step of decoding.

    The lean forward is entered at each step: the copies of the adapter that it makes on entry are a part of the graph,
    which so reads the adapter that is loaded when it is replayed.
    """
    with lean_modules(model):
        step(model.get_base_model())
