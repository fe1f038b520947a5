"""What a model makes of some rows: greedy text, response states, pooled states; eagerly, or by CUDA graphs.

A GraphReader captures its graphs once on the bare base, as trainables.training.step_graphs.StepGraphs does, and then
reads with one adapter after another: no Python runs again and no adapter is attached.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.capture.capture import attached_matrices, captured, on_stream
from trainables.data.tokens import TokenRow
from trainables.evaluation import held_out
from trainables.evaluation.decoding import GreedyDecoder
from trainables.models.architecture import context_of
from trainables.models.core import end_tokens, padding_token
from trainables.models.lean import lean_modules, multiplied_by
from trainables.models.lora import AdapterWeights, blank_matrices, name_in_file

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from trainables.values.config import TrialConfig

Texts = list[list[int]]
"""Tokens of each row's greedy continuation."""


class Reader(Protocol):
    """Reads a fixed set of rows with one model; the first of them can be decoded too."""

    def texts(self) -> Texts:
        """Greedy continuations, one a decoded row, see held_out.greedy."""

    def states(self) -> torch.Tensor:
        """(n_response_tokens, width) on the model's device, see held_out.response_states."""

    def pooled(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """(n_decoded_rows, width), the mean state over each row's text, see held_out.pooled_states."""


@dataclass(frozen=True, slots=True)
class EagerReader:
    """Reads one operation at a time, as PyTorch executes Python."""

    model: "PreTrainedModel | PeftModel"
    rows: Sequence[TokenRow]

    def texts(self) -> Texts:
        return held_out.greedy(self.model, self.rows[: held_out.N_DECODED_ROWS])

    def states(self) -> torch.Tensor:
        return held_out.response_states(self.model, self.rows)

    def pooled(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        return held_out.pooled_states(self.model, self.rows[: held_out.N_DECODED_ROWS], texts)


class ReaderBuffers:
    """Inputs and outputs of graph readers on a GPU, for one set of rows; all readers of a worker cache share them.

    Attributes:
        eval_batches: the rows.
        prompts: of the decoded rows.
        decoder: of the prompts; None where there are none.
        continuations: the prompts with a text each, in batches.
        states: (n_response_tokens, width), output of GraphReader.states.
        pooled: (n_decoded_rows, width) float32, output of GraphReader.pooled.
    """

    def __init__(self, base: "PreTrainedModel", rows: Sequence[TokenRow], n_decoded: int) -> None:
        """
        Args:
            n_decoded: so many of the rows, the first, are decoded.
        """
        self.eval_batches = held_out.eval_batches(base, rows)
        self.prompts = held_out.prompts_of(rows[:n_decoded])
        n_new, ends = held_out.MAX_NEW_TOKENS, end_tokens(base)
        self.decoder = GreedyDecoder(base, self.prompts, n_new=n_new, ends=ends) if self.prompts else None
        width, dtype = base.config.hidden_size, base.dtype
        self.states = torch.zeros(self.eval_batches.n_tokens, width, dtype=dtype, device=base.device)
        self.pooled = torch.zeros(len(self.prompts), width, device=base.device)
        n_positions = context_of(base.config)
        # with the longest text that may follow
        lengths = [min(len(prompt) + n_new, n_positions) for prompt in self.prompts]
        self.continuations: list[ContinuationBatch] = []
        for group in held_out.grouped_by_length(lengths, held_out.BATCH_TOKENS[base.device.type]):
            length = max(lengths[i] for i in group)
            self.continuations.append(
                ContinuationBatch(rows=group, length=length, pad=padding_token(base), device=base.device)
            )

    def set_texts(self, texts: Sequence[Sequence[int]]) -> None:
        """Set the text that follows each prompt in `continuations`."""
        for batch in self.continuations:
            batch.set_texts(self.prompts, texts)


class ContinuationBatch:
    """Prompts of about equal length, each followed by a text, on a GPU.

    Attributes:
        rows: (n_rows,), indices of the prompts among all prompts.
        ids: (n_rows, length), tokens, padded on the right.
        weights: (n_rows, length) float32, 1 at the positions of a text, else 0.
    """

    def __init__(self, *, rows: Sequence[int], length: int, pad: int, device: torch.device) -> None:
        self._indices, self._pad = tuple(rows), pad
        self.rows = torch.tensor(rows, device=device)
        self.ids = torch.full((len(rows), length), pad, device=device)
        self.weights = torch.ones((len(rows), length), device=device)

    def set_texts(self, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> None:
        """Set `ids` and `weights`.

        Args:
            prompts, texts: of all rows, not of this batch alone.
        """
        ids, weights = torch.full(self.ids.shape, self._pad), torch.zeros(self.weights.shape)
        for row, index in enumerate(self._indices):
            prompt, continued = prompts[index], [*prompts[index], *texts[index]]
            ids[row, : len(continued)] = torch.tensor(continued)
            weights[row, len(prompt) : len(continued)] = 1.0
        self.ids.copy_(ids)
        self.weights.copy_(weights)


class GraphReader:
    """Reads the rows of ReaderBuffers with the adapter that was loaded last, by replaying CUDA graphs."""

    def __init__(
        self,
        base: "PreTrainedModel",
        config: "TrialConfig",
        buffers: ReaderBuffers,
        full: Mapping[torch.nn.Module, torch.Tensor],
        *,
        pool: tuple[int, int],
        stream: torch.cuda.Stream,
    ) -> None:
        """
        Args:
            base: without an adapter.
            config: its targets and rank are at least those of every adapter that is loaded.
            full: dequantized weights of the 4-bit modules, see trainables.models.lean.full_weights. Decoding multiplies
                by them token by token: to dequantize each time would take longer than the products.
            pool, stream: see trainables.training.step_graphs.StepGraphs.
        """
        self._buffers = buffers
        self._pool, self._stream = pool, stream
        blank = blank_matrices(base, config).items()
        self._weights = {n: torch.nn.Parameter(w.to(base.dtype), requires_grad=False) for n, w in blank}
        with attached_matrices(base, config, self._weights, scaling=1.0) as model, multiplied_by(full), torch.no_grad():
            model.eval()
            self._states = self._captured(lambda: buffers.states.copy_(held_out.states_of(model, buffers.eval_batches)))
            if buffers.decoder is not None:
                self._first = self._captured(lambda: _decode(model, buffers.decoder.first))
                self._next = self._captured(lambda: _decode(model, buffers.decoder.next))
                self._pooled = self._captured(lambda: self._pool_states(model))

    def _captured(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        """The work as a graph; it is done once before, for libraries and the KV cache to allocate what they keep."""
        with on_stream(self._stream):
            work()
        return captured(work, pool=self._pool, stream=self._stream)

    def _pool_states(self, model: "PeftModel") -> None:
        for batch in self._buffers.continuations:
            means = held_out.mean_states(model, batch.ids, batch.weights)
            self._buffers.pooled.index_copy_(0, batch.rows, means)

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

    def texts(self) -> Texts:
        self._first.replay()
        for _ in range(held_out.MAX_NEW_TOKENS - 1):
            self._next.replay()
        return self._buffers.decoder.texts()

    def states(self) -> torch.Tensor:
        self._states.replay()
        return self._buffers.states.clone()

    def pooled(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self._buffers.set_texts(texts)
        self._pooled.replay()
        return self._buffers.pooled.cpu().numpy()


def _decode(model: "PeftModel", step: "Callable[[PreTrainedModel], object]") -> None:
    """One step of decoding.

    The lean forward is entered at each step: the copies of the adapter that it makes on entry are a part of the graph,
    which so reads the adapter that is loaded when it is replayed.
    """
    with lean_modules(model):
        step(model.get_base_model())
