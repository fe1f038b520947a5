"""Per-process cache shared by trials: tokenised rows, the frozen base at each precision, captured CUDA graphs."""

import gc
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar, get_args

import torch

from trainables.cost import memory
from trainables.cost.device import device_id
from trainables.cost.device_lock import DeviceLock
from trainables.data import tokens
from trainables.evaluation.held_out import EvalBatches, eval_batches
from trainables.models import base_model, lora
from trainables.models.architecture import context_of
from trainables.models.core import padding_token
from trainables.models.families import family_of_model
from trainables.models.lora import AdapterWeights
from trainables.training.batches import MULTIPLE_TOKENS, Batches, BatchPlan, StepShape
from trainables.training.eager import EagerEngine
from trainables.training.graph_cache import GraphCache
from trainables.values.config import Loop, Precision, TrialConfig
from trainables.values.errors import CaptureFailed
from trainables.values.workload import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trainables.evaluation.readers import GraphReader
    from trainables.models.lora import AdapterWeights
    from trainables.training.step_graphs import StepGraphs

Key = TypeVar("Key")
Value = TypeVar("Value")

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
        self._graph_cache = GraphCache()
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
        before = self.allocated_mib()
        self._bases[precision] = base_model.load(self.workload, precision, self.device)
        loaded = self.allocated_mib()
        self._base_mib[precision] = loaded - before
        self._warm_up(precision)
        _LIBRARIES_MIB.setdefault(self.device, self.allocated_mib() - loaded)
        gc.freeze()  # a collection would look through all of this again each time

    def held_out(self, precision: Precision) -> EvalBatches:
        """The validation rows on the device; the same for both precisions, whose bases are of one shape."""
        if self._validation is None:
            self._validation = eval_batches(self.base(precision), self.rows["validation"])
        return self._validation

    def batches(self, config: TrialConfig) -> Batches:
        """The training batches of a trial."""
        pad_id = padding_token(self.base(config.precision))
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

    def allocated_mib(self) -> float:
        """MiB in live tensors on the device now."""
        return memory.allocated_mib(self.device)

    @staticmethod
    def oom_as_failure() -> AbstractContextManager[None]:
        """Inside, running out of the device's memory is TrialFailed("oom"), with the peak until then."""
        return memory.oom_as_failure()

    def others_mib(self, precision: Precision) -> float:
        """Allocated MiB that a fresh process would not have; subtracted from every measured peak.

        A fresh process has the base of this precision and the workspaces of libraries. 0 on a CPU, where peaks are
        counted from the tensors that a step touches.
        """
        if self.device == "cpu":
            return 0.0
        gc.collect()
        return self.allocated_mib() - self._base_mib[precision] - _LIBRARIES_MIB[self.device]

    def graphs(self, config: TrialConfig, shapes: Iterable[StepShape]) -> "StepGraphs":
        """StepGraphs that can train a config; see GraphCache.step_graphs."""
        return self._graph_cache.step_graphs(
            self.base(config.precision),
            config,
            shapes,
            eval_batches=self.held_out(config.precision),
            compute_dtype=self.workload.compute_dtype,
        )

    def reader(self, precision: Precision, weights: "AdapterWeights | None") -> "GraphReader":
        """Reads the validation rows, see GraphCache.reader; without a GPU it raises CaptureFailed too."""
        if self.device != "cuda":
            raise CaptureFailed("there is no GPU")
        return self._graph_cache.reader(self.base(precision), precision, weights, self.rows["validation"])

    def forget(self) -> bool:
        """Drop all cached bases and graphs; True if more than one object went, so a retry may fit."""
        several = len(self._bases) + len(self._graph_cache) > 1
        self._bases.clear()
        self._base_mib.clear()
        self._graph_cache.clear()
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
