"""What a model says of some rows: greedy text, response states, pooled states; one operation at a time, or recorded.

A GraphReader is recorded once on the bare base, as a StepGraphs is, and then reads with one adapter after another without
running Python again or attaching anything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.capture.capture import attached_matrices
from trainables.data.tokens import TokenRow
from trainables.evaluation import held_out
from trainables.evaluation.decoding import GreedyDecoder
from trainables.models.lean import full_weights, lean_modules, multiplied_by
from trainables.models.lora import Weights, fresh_matrices, name_in_file

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from trainables.values.config import Precision, TrialConfig

Texts = list[list[int]]


class Reader(Protocol):
    """One model before some rows; the first N_DECODED_ROWS of them are continued."""

    def texts(self) -> Texts:
        """Greedy continuations."""

    def states(self) -> torch.Tensor:
        """(n_response_tokens, width) on the model's device, see evaluation.response_states."""

    def pooled(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """(n_decoded_rows, width), see evaluation.pooled_states."""


@dataclass(frozen=True, slots=True)
class EagerReader:
    """One operation at a time."""

    model: "PreTrainedModel | PeftModel"
    rows: Sequence[TokenRow]

    def texts(self) -> Texts:
        return held_out.greedy(self.model, self.rows[: held_out.N_DECODED_ROWS])

    def states(self) -> torch.Tensor:
        return held_out.response_states(self.model, self.rows)

    def pooled(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        return held_out.pooled_states(self.model, self.rows[: held_out.N_DECODED_ROWS], texts)


class ReaderBuffers:
    """Rows on a GPU, and room there for what one model at a time says of them; readers of a cache share it."""

    def __init__(self, base: "PreTrainedModel", rows: Sequence[TokenRow]) -> None:
        self._full_weights: dict[Precision, dict[torch.nn.Module, torch.Tensor]] = {}
        self.held = held_out.held_out(base, rows)
        self.prompts = held_out.prompts_of(base, rows[: held_out.N_DECODED_ROWS])
        n_new, end = held_out.MAX_NEW_TOKENS, base.config.eos_token_id
        self.decoder = GreedyDecoder(base, self.prompts, n_new=n_new, end=end)
        width, dtype = base.config.hidden_size, base.dtype
        self.states = torch.zeros(self.held.n_tokens, width, dtype=dtype, device=base.device)
        self.pooled = torch.zeros(len(self.prompts), width, device=base.device)
        lengths = [len(prompt) + n_new for prompt in self.prompts]  # the most that a prompt and a text can come to
        self.joined = tuple(
            ContinuationBatch(rows=rows, length=max(lengths[i] for i in rows), end=end, device=base.device)
            for rows in held_out.batches_of(lengths)
        )

    def full_weights(self, base: "PreTrainedModel", precision: "Precision") -> dict[torch.nn.Module, torch.Tensor]:
        """Of the 4-bit modules, made once: for a token at a time, dequantizing takes longer than the products."""
        if precision not in self._full_weights:
            self._full_weights[precision] = full_weights(base)
        return self._full_weights[precision]

    def place(self, texts: Sequence[Sequence[int]]) -> None:
        """Set what is read by `pooled`: every prompt with its text."""
        for batch in self.joined:
            batch.place(self.prompts, texts)


class ContinuationBatch:
    """Prompts of about equal length with their texts, on a GPU.

    Attributes:
        rows: (n_rows,), numbers of the prompts.
        ids: (n_rows, length).
        weights: (n_rows, length), 1 at the positions of a text.
    """

    def __init__(self, *, rows: Sequence[int], length: int, end: int, device: torch.device) -> None:
        self._numbers, self._end = tuple(rows), end
        self.rows = torch.tensor(rows, device=device)
        self.ids = torch.full((len(rows), length), end, device=device)
        self.weights = torch.ones((len(rows), length), device=device)

    def place(self, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> None:
        """Set `ids` and `weights`."""
        ids, weights = torch.full(self.ids.shape, self._end), torch.zeros(self.weights.shape)
        for row, number in enumerate(self._numbers):
            prompt, whole = prompts[number], [*prompts[number], *texts[number]]
            ids[row, : len(whole)] = torch.tensor(whole)
            weights[row, len(prompt) : len(whole)] = 1.0
        self.ids.copy_(ids)
        self.weights.copy_(weights)


class GraphReader:
    """A base with the adapter that was loaded last, before the rows of a ReaderBuffers; as CUDA graphs."""

    def __init__(
        self,
        base: "PreTrainedModel",
        config: "TrialConfig",
        rows: ReaderBuffers,
        *,
        pool: tuple[int, int],
        stream: torch.cuda.Stream,
    ) -> None:
        """
        Args:
            base: without an adapter.
            config: whose targets, and whose rank or a lower one, an adapter may have.
            pool, stream: as of trainables.training.graph.StepGraphs.
        """
        self._rows = rows
        self._pool, self._stream = pool, stream
        fresh = fresh_matrices(base, config)
        self._weights = {n: torch.nn.Parameter(w.to(base.dtype), requires_grad=False) for n, w in fresh.items()}
        full = rows.full_weights(base, config.precision)
        with attached_matrices(base, config, self._weights, scaling=1.0) as model, multiplied_by(full), torch.no_grad():
            model.eval()
            core = model.get_base_model()
            with lean_modules(model):
                self._first = self._recorded(lambda: rows.decoder.first(core))
                self._next = self._recorded(lambda: rows.decoder.next(core))
            self._states = self._recorded(lambda: rows.states.copy_(held_out.states_of(model, rows.held)))
            self._pooled = self._recorded(lambda: self._pool_states(model))

    def _recorded(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        """Done once, so that libraries and the cache allocate what they keep, and then recorded."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            work()
        return graph

    def _pool_states(self, model: "PeftModel") -> None:
        for batch in self._rows.joined:
            self._rows.pooled.index_copy_(0, batch.rows, held_out.mean_states(model, batch.ids, batch.weights))

    @torch.no_grad()
    def load(self, weights: Weights | None) -> None:
        """Read with this adapter from now on; with none, as the base alone."""
        for name, mine in self._weights.items():
            mine.zero_()
            if weights is not None:
                theirs = weights.matrices[name_in_file(name)]
                if ".lora_B." in name:
                    theirs = theirs * weights.scaling
                mine[: theirs.shape[0], : theirs.shape[1]].copy_(theirs)

    def texts(self) -> Texts:
        self._first.replay()
        for _ in range(held_out.MAX_NEW_TOKENS - 1):
            self._next.replay()
        return self._rows.decoder.texts()

    def states(self) -> torch.Tensor:
        self._states.replay()
        return self._rows.states.clone()

    def pooled(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self._rows.place(texts)
        self._pooled.replay()
        return self._rows.pooled.cpu().numpy()
