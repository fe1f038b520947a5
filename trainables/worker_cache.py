"""Per-process cache shared by trials: tokenised rows, the frozen base at each precision, captured CUDA graphs."""

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
from trainables.evaluation.held_out import EvalBatches, eval_batches
from trainables.evaluation.readers import GraphReader, ReaderBuffers
from trainables.models import base_model, lora
from trainables.models.architecture import context_of
from trainables.models.families import family_of_model
from trainables.models.lora import AdapterWeights
from trainables.training.batches import MULTIPLE_TOKENS, Batches, BatchPlan, StepShape
from trainables.training.eager import EagerEngine
from trainables.training.step_graphs import GraphKey, StepGraphs, graph_key
from trainables.values.config import Loop, Precision, TrialConfig, Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Key = TypeVar("Key")
Value = TypeVar("Value")

MAX_STEP_GRAPHS = 16
"""StepGraphs that stay on the device."""
MAX_ON_HOST = 8
"""So many plans' batches, and so many fresh adapters, stay on the host."""
_LIBRARIES_MIB: dict[str, float] = {}
"""Device -> MiB of the workspaces that its libraries keep from first use on. They allocate once a process, not once a
cache: so this is the process's, too."""


class WorkerCache:
    """What the trials of one worker process share: tokenised rows, frozen bases, CUDA graphs.

    On a GPU the bases of both precisions stay on the device, so that no trial waits for weights; a trial's measured
    memory leaves out what it does not need itself, see `others_mib`.

    Attributes:
        rows: of each split, by its name.
        device_lock: of the device, shared with other processes.
        untuned: greedy texts and response states of the 16-bit base without an adapter, by the rows that it read;
            filled by trainables.comparison.compare.
    """

    def __init__(self, workload: Workload, device: str) -> None:
        """
        Args:
            device: "cuda" or "cpu".
        """
        self.workload = workload
        self.device = device
        self.rows = tokens.load(workload.data_folder)
        self.device_lock = DeviceLock(device_id(device))
        self.untuned: dict[tuple[tokens.TokenRow, ...], tuple[list[list[int]], torch.Tensor]] = {}
        self._bases: dict[Precision, PreTrainedModel] = {}
        self._base_mib: dict[Precision, float] = {}
        self._step_graphs: dict[GraphKey, StepGraphs] = {}
        self._readers: dict[tuple[Precision, tuple[str, ...], int], GraphReader] = {}
        self._reader_buffers: ReaderBuffers | None = None
        self._pool: tuple[int, int] | None = None
        self._stream: torch.cuda.Stream | None = None
        self._capture_fault: str | None = None
        self._validation: EvalBatches | None = None
        self._batches: dict[BatchPlan, Batches] = {}
        self._fresh_matrices: dict[tuple[int, int, tuple[str, ...]], dict[str, torch.Tensor]] = {}

    def base(self, precision: Precision) -> "PreTrainedModel":
        """The frozen base, loaded at first use; where memory is short, everything else is given up for it."""
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
        _LIBRARIES_MIB.setdefault(self.device, memory.allocated_mib(self.device) - loaded)
        gc.freeze()  # a collection would look through all of this again each time

    def held_out(self, precision: Precision) -> EvalBatches:
        """The validation rows on the device; the same for both precisions, whose bases are of one shape."""
        if self._validation is None:
            self._validation = eval_batches(self.base(precision), self.rows["validation"])
        return self._validation

    def batches(self, config: TrialConfig) -> Batches:
        """The training batches of a trial."""
        pad_id = base_model.padding_token(self.base(config.precision))
        plan = BatchPlan.of(config)
        return _cached(self._batches, plan, lambda: Batches(plan, self.rows["train"], pad_id=pad_id))

    def fresh_matrices(self, config: TrialConfig) -> dict[str, torch.Tensor]:
        """A fresh adapter's matrices on the device, the caller's own; they depend on seed, rank and targets only.

        Raises:
            ConfigError: see trainables.models.lora.attach.
        """

        def on_host() -> dict[str, torch.Tensor]:
            fresh = lora.fresh_matrices(self.base(config.precision), config)
            return {name: matrix.detach().cpu() for name, matrix in fresh.items()}

        matrices = _cached(self._fresh_matrices, (config.seed, config.rank, config.targets), on_host)
        return {name: matrix.to(self.device, copy=True) for name, matrix in matrices.items()}

    def others_mib(self, precision: Precision) -> float:
        """Allocated MiB that a fresh process would not have; subtracted from every measured peak.

        A fresh process has the base of this precision and the workspaces of libraries. 0 on a CPU, where peaks are
        counted from the tensors that a step touches.
        """
        if self.device == "cpu":
            return 0.0
        gc.collect()
        return memory.allocated_mib(self.device) - self._base_mib[precision] - _LIBRARIES_MIB[self.device]

    def graphs(self, config: TrialConfig, shapes: Iterable[StepShape]) -> StepGraphs:
        """StepGraphs that can train a config, with graphs of these shapes; captured where they are missing.

        Raises:
            CaptureFailed: these steps cannot be captured on this device, or it has too little memory for it.
        """
        base, key = self.base(config.precision), graph_key(config)
        with self._capturing():
            graphs = self._step_graphs.pop(key, None) or StepGraphs(
                base,
                config,
                eval_batches=self.held_out(config.precision),
                compute_dtype=self.workload.compute_dtype,
                pool=self._pool,
                stream=self._stream,
            )
            graphs.capture(shapes)
        self._step_graphs[key] = graphs  # those used last come last
        if len(self._step_graphs) > MAX_STEP_GRAPHS:
            del self._step_graphs[next(iter(self._step_graphs))]
        return graphs

    def reader(self, precision: Precision, weights: AdapterWeights | None) -> GraphReader:
        """Reads the validation rows with an adapter, by CUDA graphs; captured where they are missing.

        Args:
            weights: None for the base alone, which any reader of its precision can read with.
        Raises:
            CaptureFailed: see `graphs`; or there is no GPU, or for the base alone no reader yet.
        """
        if self.device != "cuda":
            raise CaptureFailed("there is no GPU")
        with self._capturing():
            if weights is None:
                reader = self._any_reader(precision)
            else:
                reader = self._reader_for(precision, weights)
            reader.load(weights)
        return reader

    def _any_reader(self, precision: Precision) -> GraphReader:
        for (own_precision, *_), reader in self._readers.items():
            if own_precision == precision:
                return reader
        raise CaptureFailed("nothing is captured yet")

    def _reader_for(self, precision: Precision, weights: AdapterWeights) -> GraphReader:
        base, rank = self.base(precision), padded_rank(weights.rank)
        key = (precision, weights.targets, rank)
        if key not in self._readers:
            self._reader_buffers = self._reader_buffers or ReaderBuffers(base, self.rows["validation"])
            config = TrialConfig(precision=precision, rank=rank, alpha=1, targets=weights.targets, dropout=0.0)
            self._readers[key] = GraphReader(base, config, self._reader_buffers, pool=self._pool, stream=self._stream)
        return self._readers[key]

    @contextmanager
    def _capturing(self) -> Iterator[None]:
        """Inside, graphs can be captured with `_pool` and `_stream`.

        Raises:
            CaptureFailed: for lack of memory, after which a later capture may succeed; or the work cannot be captured
                on this device, after which none is tried again.
        """
        if self._capture_fault:
            raise CaptureFailed(self._capture_fault)
        self._stream = self._stream or torch.cuda.Stream()
        if not self._step_graphs and not self._readers:  # a pool is gone with the last graph that uses it
            self._pool = torch.cuda.graph_pool_handle()
        try:
            yield
        except RuntimeError as error:
            traceback.clear_frames(error.__traceback__)
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if not isinstance(error, torch.cuda.OutOfMemoryError):
                self._capture_fault = reason
                self._forget_graphs()  # their dropout uses the random generator that is replaced now
                abandon_capture()
                print(f"steps cannot be captured as CUDA graphs here; going on without: {reason}", file=sys.stderr)
            raise CaptureFailed(reason) from None

    def _forget_graphs(self) -> None:
        self._step_graphs.clear()
        self._readers.clear()
        self._reader_buffers = None

    def forget(self) -> bool:
        """Drop all cached bases and graphs; True if more than one object went, so a retry may fit."""
        several = len(self._bases) + len(self._step_graphs) + len(self._readers) > 1
        self._bases.clear()
        self._base_mib.clear()
        self._forget_graphs()
        self.untuned.clear()
        self._validation = None
        gc.unfreeze()
        gc.collect()  # a 4-bit weight refers to its module and back: only this frees it
        if self.device == "cuda":
            torch.cuda.empty_cache()
        return several

    def _warm_up(self, precision: Precision) -> None:
        """Do a step of each loop: libraries allocate workspaces at first use, which no trial is to be blamed for."""
        base = self._bases[precision]
        length = min(MULTIPLE_TOKENS, context_of(base.config))
        ids = torch.zeros(4, length, dtype=torch.int64)
        targets = family_of_model(base).targets
        for loop in get_args(Loop):
            config = TrialConfig(precision=precision, rank=8, alpha=1, targets=targets, loop=loop)
            model = lora.attach(base, config, base_name=self.workload.base_model)
            try:
                engine = EagerEngine(model, config, compute_dtype=self.workload.compute_dtype, device=self.device)
                engine.run([(ids, ids)])
            finally:
                lora.detach(model)
            del model, engine
        gc.collect()  # peft's modules refer to each other; what they hold would hide a leak


def _cached(values: dict[Key, Value], key: Key, make: Callable[[], Value]) -> Value:
    """The value of a key, made where it is missing; all but the MAX_ON_HOST values that were used last are dropped."""
    values[key] = values.pop(key) if key in values else make()
    while len(values) > MAX_ON_HOST:
        del values[next(iter(values))]
    return values[key]
