"""What a worker keeps between trials: tokens, base models, and what was recorded on them."""

import gc
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar, get_args

import torch

from trainables.capture.capture import CaptureFailed, abandon_capture, padded_rank
from trainables.cost import memory
from trainables.cost.device import device_id
from trainables.cost.device_lock import DeviceLock
from trainables.data import tokens
from trainables.evaluation import held_out as evaluation
from trainables.evaluation.readers import GraphReader, ReaderBuffers
from trainables.models import base_model, lora
from trainables.models.families import family_of
from trainables.training.batches import MULTIPLE_TOKENS, Batches, BatchPlan, StepShape
from trainables.training.eager import EagerEngine
from trainables.training.graph import GraphKey, StepGraphs, graph_key
from trainables.values.config import Loop, Precision, TrialConfig, Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Key = TypeVar("Key")
Made = TypeVar("Made")

MAX_STEP_GRAPHS = 16
MAX_KEPT = 8
"""Draws of batches, and fresh adapters, that are kept on the host for the next trials."""
LIBRARIES_MIB: dict[str, float] = {}
"""What a device's libraries keep from first use on, by device: they allocate once a process, not once a cache."""


class WorkerCache:
    """What a worker keeps between trials: the tokens, the base models and the captured steps.

    On a GPU both precisions stay on the device, so that no trial waits for weights; a trial's memory leaves out what
    it would do without, see `others_mib`.

    Attributes:
        untuned: greedy text and response states of the 16-bit base by the rows that it read, where they were needed.
    """

    def __init__(self, workload: Workload, device: str) -> None:
        self.workload = workload
        self.device = device
        self.rows = tokens.load(workload.data_folder)
        self.device_lock = DeviceLock(device_id(device))
        self.untuned: dict[tuple[tokens.TokenRow, ...], tuple[list[list[int]], torch.Tensor]] = {}
        self._bases: dict[Precision, PreTrainedModel] = {}
        self._base_mib: dict[Precision, float] = {}
        self._step_graphs: dict[GraphKey, StepGraphs] = {}
        self._readers: dict[tuple[Precision, tuple[str, ...], int], GraphReader] = {}
        self._read_rows: ReaderBuffers | None = None
        self._pool: tuple[int, int] | None = None
        self._stream: torch.cuda.Stream | None = None
        self._capture_fault: str | None = None
        self._held: evaluation.EvalBatches | None = None
        self._batches: dict[BatchPlan, Batches] = {}
        self._fresh: dict[tuple[int, int, tuple[str, ...]], dict[str, torch.Tensor]] = {}

    def base(self, precision: Precision) -> "PreTrainedModel":
        """The frozen base."""
        if precision not in self._bases:
            try:
                self._load(precision)
            except torch.cuda.OutOfMemoryError:
                if not self.forget():
                    raise
                self._load(precision)
        return self._bases[precision]

    def _load(self, precision: Precision) -> None:
        if self.device == "cpu":
            self._bases[precision] = base_model.load(self.workload, precision, self.device)
            return
        gc.collect()
        before = memory.allocated_mib(self.device)
        self._bases[precision] = base_model.load(self.workload, precision, self.device)
        loaded = memory.allocated_mib(self.device)
        self._base_mib[precision] = loaded - before
        self._warm_up(precision)
        LIBRARIES_MIB.setdefault(self.device, memory.allocated_mib(self.device) - loaded)
        gc.freeze()  # a collection would look through all of this again each time

    def held_out(self, precision: Precision) -> evaluation.EvalBatches:
        """The validation rows on the device, once."""
        if self._held is None:
            self._held = evaluation.held_out(self.base(precision), self.rows["validation"])
        return self._held

    def batches(self, config: TrialConfig) -> Batches:
        """What the steps of a trial read."""
        pad_id = self.base(config.precision).config.eos_token_id
        draw = BatchPlan.of(config)
        return _kept(self._batches, draw, lambda: Batches(draw, self.rows["train"], pad_id=pad_id))

    def fresh_matrices(self, config: TrialConfig) -> dict[str, torch.Tensor]:
        """A fresh adapter's matrices on the device, the caller's own; they depend on seed, rank and targets only.

        Raises:
            ConfigError: as of trainables.models.lora.attach.
        """

        def made() -> dict[str, torch.Tensor]:
            fresh = lora.fresh_matrices(self.base(config.precision), config)
            return {name: matrix.detach().cpu() for name, matrix in fresh.items()}

        kept = _kept(self._fresh, (config.seed, config.rank, config.targets), made)
        return {name: matrix.to(self.device, copy=True) for name, matrix in kept.items()}

    def others_mib(self, precision: Precision) -> float:
        """What is on a GPU now besides this base and what libraries keep, as a new worker would have them."""
        if self.device == "cpu":
            return 0.0
        gc.collect()
        return memory.allocated_mib(self.device) - self._base_mib[precision] - LIBRARIES_MIB[self.device]

    def graphs(self, config: TrialConfig, shapes: Iterable[StepShape]) -> StepGraphs:
        """A step graphs that can train a config, with these steps on it.

        Raises:
            CaptureFailed: these steps cannot be captured on this device, or it has too little memory for it.
        """
        base, kind = self.base(config.precision), graph_key(config)
        with self._capturing():
            graphs = self._step_graphs.pop(kind, None) or StepGraphs(
                base,
                config,
                held=self.held_out(config.precision),
                compute_dtype=self.workload.compute_dtype,
                pool=self._pool,
                stream=self._stream,
            )
            graphs.record(shapes)
        self._step_graphs[kind] = graphs  # the last one used comes last
        if len(self._step_graphs) > MAX_STEP_GRAPHS:
            del self._step_graphs[next(iter(self._step_graphs))]
        return graphs

    def reader(self, precision: Precision, weights: lora.Weights | None) -> GraphReader:
        """What reads the validation rows with an adapter, or without one as soon as it was recorded for any.

        Raises:
            CaptureFailed: as of `graphs`, or there is no GPU.
        """
        if self.device != "cuda":
            raise CaptureFailed("there is no GPU")
        with self._capturing():
            if weights is None:
                reader = next((one for (own, *_), one in self._readers.items() if own == precision), None)
            else:
                reader = self._reader_for(precision, weights)
            if reader is None:
                raise CaptureFailed("nothing is recorded yet")
            reader.load(weights)
        return reader

    def _reader_for(self, precision: Precision, weights: lora.Weights) -> GraphReader:
        base, kind = self.base(precision), (precision, weights.targets, padded_rank(weights.rank))
        if kind not in self._readers:
            self._read_rows = self._read_rows or ReaderBuffers(base, self.rows["validation"])
            config = TrialConfig(precision=precision, rank=kind[2], alpha=1, targets=weights.targets, dropout=0.0)
            self._readers[kind] = GraphReader(base, config, self._read_rows, pool=self._pool, stream=self._stream)
        return self._readers[kind]

    @contextmanager
    def _capturing(self) -> Iterator[None]:
        """Work inside may be recorded: in the pool, on the stream.

        Raises:
            CaptureFailed: it cannot be, on this device or for lack of memory.
        """
        if self._capture_fault:
            raise CaptureFailed(self._capture_fault)
        self._stream = self._stream or torch.cuda.Stream()
        if not self._step_graphs and not self._readers:  # a pool is gone with the last that draws from it
            self._pool = torch.cuda.graph_pool_handle()
        try:
            yield
        except RuntimeError as error:
            traceback.clear_frames(error.__traceback__)
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if not isinstance(error, torch.cuda.OutOfMemoryError):
                self._capture_fault = reason
                self._forget_graphs()  # they draw from the generator that is replaced now
                abandon_capture()
                print(f"steps cannot be captured as CUDA graphs here; going on without: {reason}", file=sys.stderr)
            raise CaptureFailed(reason) from None

    def _forget_graphs(self) -> None:
        self._step_graphs.clear()
        self._readers.clear()
        self._read_rows = None

    def forget(self) -> bool:
        """Free every base and graphs; returns whether there was more than one base."""
        several = len(self._bases) + len(self._step_graphs) + len(self._readers) > 1
        self._bases.clear()
        self._base_mib.clear()
        self._forget_graphs()
        self.untuned.clear()
        self._held = None
        gc.unfreeze()
        gc.collect()  # a 4-bit weight refers to its module and back: only this frees it
        if self.device == "cuda":
            torch.cuda.empty_cache()
        return several

    def _warm_up(self, precision: Precision) -> None:
        """Let libraries allocate the workspaces that they keep: they are no trial's leak."""
        base = self._bases[precision]
        family = family_of(base.config.model_type)
        length = min(MULTIPLE_TOKENS, base.config.max_position_embeddings)
        ids = torch.zeros(4, length, dtype=torch.int64)
        for loop in get_args(Loop):
            config = TrialConfig(precision=precision, rank=8, alpha=1, targets=family.targets, loop=loop)
            model = lora.attach(base, config, base_name=self.workload.base_model)
            try:
                engine = EagerEngine(model, config, compute_dtype=self.workload.compute_dtype, device=self.device)
                engine.step(ids, ids)
            finally:
                lora.detach(model)
            del model, engine
        gc.collect()  # peft's modules refer to each other; what they hold would hide a leak


def _kept(found: dict[Key, Made], key: Key, make: Callable[[], Made]) -> Made:
    """The value that was made for this key; the last one used comes last, and all but MAX_KEPT are forgotten."""
    found[key] = found.pop(key) if key in found else make()
    while len(found) > MAX_KEPT:
        del found[next(iter(found))]
    return found[key]
