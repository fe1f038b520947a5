"""CUDA graphs on the bases of a worker, captured once for many trials: training steps, and readers of rows."""

import sys
import traceback
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from trainables.capture.capture import RANKS, abandon_capture
from trainables.evaluation.held_out import EvalBatches
from trainables.evaluation.readers import GraphReader, ReaderBuffers
from trainables.models.families import family_of_model
from trainables.models.families.generic import sizes_of
from trainables.models.full_weights import keeping
from trainables.training.batches import StepShape
from trainables.training.graph_key import GraphKey, graph_key
from trainables.training.step_graphs import StepGraphs
from trainables.values.config import BaseForm, ComputeDtype, TrialConfig
from trainables.values.errors import CaptureFailed, NoRoom

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trainables.evaluation.readers import RowSets
    from trainables.models.lora import AdapterWeights

SPECIALIZED = 16
"""Triton compiles a kernel anew for a size that is no multiple of it."""
MIN_STEP_GRAPHS = 16
"""So many StepGraphs stay on the device; more while half of its memory is free."""


class GraphCache:
    """StepGraphs and GraphReaders of all forms of a base. All share one memory pool: no two replay at the same time.

    Attributes:
        fault: why nothing can be captured on this device, once that is known.
    """

    def __init__(self, has_room: Callable[[], bool] | None = None) -> None:
        """
        Args:
            has_room: whether more than MIN_STEP_GRAPHS may stay; by default, where half of the memory is free.
        """
        self.fault: str | None = None
        self._has_room = has_room or _has_room
        self._step_graphs: dict[GraphKey, StepGraphs] = {}
        self._readers: dict[tuple[BaseForm, int], GraphReader] = {}  # by rank, too
        self._reader_buffers: ReaderBuffers | None = None
        self._full_weights: dict[BaseForm, list[torch.Tensor]] = {}  # that readers multiply by
        self._too_large: set[tuple[BaseForm, int]] = set()  # readers that there was no memory for
        self._pool: tuple[int, int] | None = None
        self._stream: torch.cuda.Stream | None = None
        self._warm: set[Hashable] = set()  # see StepGraphs

    def __len__(self) -> int:
        return len(self._step_graphs) + len(self._readers)

    def clear(self) -> None:
        """Give up all graphs and what they read."""
        self._step_graphs.clear()
        self._too_large.clear()
        self._clear_readers()

    def _clear_readers(self) -> None:
        self._readers.clear()
        self._reader_buffers = None
        self._full_weights.clear()

    def step_graphs(
        self,
        base: "PreTrainedModel",
        config: TrialConfig,
        shapes: Iterable[StepShape],
        *,
        timed: Iterable[StepShape] = (),
        eval_batches: EvalBatches,
        compute_dtype: ComputeDtype,
    ) -> StepGraphs:
        """StepGraphs that can train a config, with graphs of these shapes; captured where they are missing.

        Args:
            timed: see StepGraphs.capture.
            base, eval_batches, compute_dtype: see StepGraphs.
        Raises:
            CaptureFailed: these steps cannot be captured on this device, or it has too little memory for it.
        """
        key = graph_key(config)
        with self._capturing():
            graphs = self._step_graphs.pop(key, None) or StepGraphs(
                base,
                config,
                eval_batches=eval_batches,
                compute_dtype=compute_dtype,
                pool=self._pool,
                stream=self._stream,
                warm=self._warm if _compiles_alike(base) else None,
            )
            graphs.capture(shapes, timed=timed)
        self._step_graphs[key] = graphs  # those used last come last
        if len(self._step_graphs) > MIN_STEP_GRAPHS and not self._has_room():
            del self._step_graphs[next(iter(self._step_graphs))]
        return graphs

    def reader(
        self, base: "PreTrainedModel", form: BaseForm, weights: "AdapterWeights | None", sets: "RowSets"
    ) -> GraphReader:
        """Reads with an adapter; captured where that is missing, for adapters on any modules.

        Args:
            base: of this form, without an adapter.
            weights: None for the base alone, which any reader of its form can read with.
            sets: the same each time.
        Raises:
            CaptureFailed: see `step_graphs`; or for the base alone there is no reader yet.
        """
        if weights is None:
            reader = self._any_reader(form)
        else:
            reader = self._captured_reader(base, (form, max(weights.rank, RANKS[-1])), sets)
        with self._capturing():
            reader.load(weights)
        return reader

    def _any_reader(self, form: BaseForm) -> GraphReader:
        for (own_form, _), reader in self._readers.items():
            if own_form == form:
                return reader
        raise CaptureFailed("nothing is captured yet")

    def _captured_reader(self, base: "PreTrainedModel", key: tuple[BaseForm, int], sets: "RowSets") -> GraphReader:
        """Where there was no memory for it once, that is not tried again: each time it costs the other readers."""
        if key in self._too_large:
            raise NoRoom("no memory for captured readers")
        if key not in self._readers:
            try:
                with self._capturing():
                    self._readers[key] = self._new_reader(base, key, sets)
            except CaptureFailed:
                self._too_large.add(key)
                raise
        return self._readers[key]

    def _new_reader(self, base: "PreTrainedModel", key: tuple[BaseForm, int], sets: "RowSets") -> GraphReader:
        form, rank = key
        self._reader_buffers = self._reader_buffers or ReaderBuffers(base, sets)
        precision, keep_16bit = form
        config = TrialConfig(
            precision=precision,
            keep_16bit=keep_16bit,
            rank=rank,
            alpha=1,
            targets=family_of_model(base).targets,
            dropout=0.0,
        )
        with keeping(base, self._full_weights.get(form, ())) as self._full_weights[form]:
            # decoding multiplies by them token by token: to dequantize each time would take longer than the products
            return GraphReader(base, config, self._reader_buffers, pool=self._pool, stream=self._stream)

    @contextmanager
    def _capturing(self) -> Iterator[None]:
        """Inside, graphs can be captured with `_pool` and `_stream`.

        Raises:
            CaptureFailed: for lack of memory, after which a later capture may succeed: readers are given up, as what is
                done eagerly now needs the room; or the work cannot be captured on this device, after which none is
                tried again.
        """
        if self.fault:
            raise CaptureFailed(self.fault)
        self._stream = self._stream or torch.cuda.Stream()
        if not len(self):  # a pool is gone with the last graph that uses it
            self._pool = torch.cuda.graph_pool_handle()
        try:
            yield
        except RuntimeError as error:
            traceback.clear_frames(error.__traceback__)
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if isinstance(error, torch.cuda.OutOfMemoryError):
                self._clear_readers()
            else:
                self.fault = reason
                self.clear()  # they were captured with the random generator that is replaced now
                abandon_capture()
                print(f"steps cannot be captured as CUDA graphs here; going on without: {reason}", file=sys.stderr)
                raise CaptureFailed(reason) from None
            raise NoRoom(reason) from None


def _compiles_alike(base: "PreTrainedModel") -> bool:
    """Whether GraphKey.kernels tells of a base which kernels there are."""
    family = family_of_model(base)
    blocks = family.blocks_of(base)
    widths = [sizes_of(module)[0] for module in family.modules_in(blocks[0]).values()]
    return len(blocks) > 1 and not any(width % SPECIALIZED for width in widths)


def _has_room() -> bool:
    """Whether half of the device's memory is free."""
    free, total = torch.cuda.mem_get_info()
    return 2 * free > total
