"""Per-process cache shared by trials: tokenised rows, the frozen base in each form, captured CUDA graphs."""

import gc
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from trainables.comparison import bias
from trainables.comparison.kl_breakdown import token_counts
from trainables.cost import memory
from trainables.cost.device import device_id, free_memory_mib, native_dtype
from trainables.cost.device_lock import DeviceLock
from trainables.cost.timeline import Timeline, WorkerPhase
from trainables.data import tokens
from trainables.data.tokenizer import open_tokenizer
from trainables.evaluation.held_out import EVAL_LENGTH_TOKENS, EvalBatches, eval_batches
from trainables.evaluation.readers import RowSets
from trainables.evaluation.readings import Readings
from trainables.models.architecture import context_tokens
from trainables.models.compile_ahead import compile_ahead
from trainables.models.compiler import Compiler
from trainables.models.core import padding_token
from trainables.models.families import family_of
from trainables.models.fresh_adapters import FreshAdapters
from trainables.models.lora import AdapterWeights
from trainables.models.padding_free import serves
from trainables.training.batches import Batches, BatchPlan, StepShape
from trainables.training.frozen_bases import FrozenBases
from trainables.training.graph_cache import GraphCache
from trainables.values.config import BaseForm, Precision, TrialConfig
from trainables.values.errors import CaptureFailed, NoRoom
from trainables.values.last_used import LastUsed
from trainables.values.results import Cost
from trainables.values.workload import Workload

if TYPE_CHECKING:
    from subprocess import Popen

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trainables.evaluation.readers import GraphReader
    from trainables.training.step_graphs import StepGraphs

Value = TypeVar("Value")

MAX_ON_HOST = 8
"""So many plans' batches, and so many fresh adapters, stay on the host."""


def prepare(device: str, after: "Popen | None" = None) -> Compiler | None:
    """Begin what needs no workload yet: kernels for a GPU are compiled beside what this process does.

    Args:
        after: see trainables.models.compile_ahead.
    """
    if device == "cuda":
        with suppress(RuntimeError):  # of a device that is lost, which the first task shows
            return compile_ahead(getattr(torch, native_dtype(device)), after)
    return None


class WorkerCache:
    """What the trials of one worker process share: tokenised rows, frozen bases, CUDA graphs.

    On a GPU the bases of all forms stay on the device, so that no trial waits for weights; a trial's measured
    memory leaves out what it does not need itself, see `others_mib`.

    Attributes:
        rows: of each split, by its name.
        device_lock: of the device, shared with other processes; None where no time decides anything.
        timeline: what this process does when.
        readings: what 16-bit models made of rows; filled by trainables.comparison.compare.
        untuned_nats: summed loss of each row by a form of the base without an adapter; filled there, too.
        fresh_adapters: what trials begin with.
    """

    def __init__(
        self,
        workload: Workload,
        device: str,
        timeline: Timeline | None = None,
        *,
        is_timed: bool = True,
        compiler: Compiler | None = None,
    ) -> None:
        """
        Args:
            device: "cuda" or "cpu".
            compiler: rests while a step is measured.
            timeline: of the process, where it has one; else a new one.
            is_timed: a step's time decides something. Else no process waits until another has measured one.
        """
        self.workload = workload
        self.device = device
        self.timeline = timeline or Timeline()
        self.rows = tokens.load(workload.data_folder)
        self.device_lock = DeviceLock(device_id(device)) if is_timed else None
        self._compiler = compiler
        self.readings = Readings()
        self.untuned_nats: dict[tuple[BaseForm, tuple[tokens.TokenRow, ...]], tuple[float, ...]] = {}
        self._bases = FrozenBases(workload, device)
        self._graph_cache = GraphCache()
        self._validation: EvalBatches | None = None
        self._batches = LastUsed[BatchPlan, Batches](MAX_ON_HOST)
        self.fresh_adapters = FreshAdapters(MAX_ON_HOST)

    @contextmanager
    def working(self, phase: WorkerPhase) -> Iterator[None]:
        """Inside, this process works on the device: never while another measures there alone.

        On a CPU, where workers have cores of their own, that goes for training and for cost keys only.
        """
        in_turn = self.device_lock and (self.device == "cuda" or phase in ("training", "cost key"))
        with self.device_lock.shared() if in_turn else nullcontext(), self.timeline.span(phase):
            yield

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Inside, this process measures a step: alone on the device, and compiling nothing, where time decides
        something."""
        alone = self.device_lock.alone() if self.device_lock else nullcontext()
        still = self._compiler.resting() if self.device_lock and self._compiler else nullcontext()
        with still, alone, self.timeline.span("cost key"):
            yield

    def base(self, precision: Precision, keep_16bit: tuple[str, ...] = ()) -> "PreTrainedModel":
        """The frozen base, loaded at first use; where memory is short, everything else is given up for it."""
        form = precision, keep_16bit
        if (loaded := self._bases.get(form)) is not None:
            return loaded
        try:
            return self._load(form)
        except torch.cuda.OutOfMemoryError as error:
            if not len(self._bases) and not len(self._graph_cache):
                raise
            traceback.clear_frames(error.__traceback__)  # their locals would keep the base alive
            self.give_up()
        return self._load(form)

    def _load(self, form: BaseForm) -> "PreTrainedModel":
        with self.working("base"):
            return self._bases.load(form)

    def held_out(self, form: BaseForm) -> EvalBatches:
        """The validation rows on the device; the same for all forms of the base, which are of one shape."""
        if self._validation is None:
            self._validation = eval_batches(self.base(*form), self.rows["validation"])
        return self._validation

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The base's."""
        return open_tokenizer(Path(self.workload.base_folder))

    @cached_property
    def token_counts(self) -> Mapping[int, int]:
        """Occurrences of each token in the responses of the training rows."""
        return token_counts(self.rows["train"])

    @cached_property
    def bias_rows(self) -> tuple[tokens.TokenRow, ...]:
        """Of the probe of bias, see its `prompt_rows`."""
        folder = self.workload.base_folder
        return bias.prompt_rows(folder, self.workload.row_kind, min(EVAL_LENGTH_TOKENS, context_tokens(Path(folder))))

    def batches(self, config: TrialConfig) -> Batches:
        """The training batches of a trial."""
        base, plan = self.base(*config.base_form), BatchPlan.of(config)
        pad_id, lie_flat = padding_token(base), serves(base)
        return self._batches.get(plan, lambda: Batches(plan, self.rows["train"], pad_id=pad_id, lie_flat=lie_flat))

    def fresh_matrices(self, config: TrialConfig) -> dict[str, torch.Tensor]:
        """A fresh adapter's matrices on the device, see FreshAdapters.of."""
        return self.fresh_adapters.of(self.base(*config.base_form), config)

    def allocated_mib(self) -> float:
        """MiB in live tensors on the device now."""
        return memory.allocated_mib(self.device)

    @staticmethod
    def oom_as_failure() -> AbstractContextManager[None]:
        """Inside, running out of the device's memory is TrialFailed("oom"), with the peak until then."""
        return memory.oom_as_failure()

    def others_mib(self, form: BaseForm) -> float:
        """Allocated MiB that a fresh process would not have; subtracted from every measured peak.

        A fresh process has the base in this form and the workspaces of libraries. 0 on a CPU, where peaks are
        counted from the tensors that a step touches.
        """
        if self.device == "cpu":
            return 0.0
        gc.collect()
        return self._bases.others_mib(form)

    def graphs(self, config: TrialConfig, shapes: Iterable[StepShape], timed: Iterable[StepShape] = ()) -> "StepGraphs":
        """StepGraphs that can train a config; see GraphCache.step_graphs."""

        def capture() -> "StepGraphs":
            return self._graph_cache.step_graphs(
                self.base(*config.base_form),
                config,
                shapes,
                timed=timed,
                eval_batches=self.held_out(config.base_form),
                compute_dtype=self.workload.compute_dtype,
            )

        with self.working("capture"):
            return self._captured(capture)

    def reader(self, form: BaseForm, weights: "AdapterWeights | None") -> "GraphReader":
        """Reads validation, test and bias rows, see GraphCache.reader; without a GPU, and for a base of no family
        described here, it raises CaptureFailed too."""
        if self.device != "cuda" or family_of(self.base(*form).config.model_type) is None:
            raise CaptureFailed("there is no GPU, or nothing is known of how this base decodes")
        decoded = tuple(tuple(self.rows[split]) for split in ("validation", "test"))
        sets = RowSets(decoded=decoded, others=(self.bias_rows,) if self.bias_rows else ())
        return self._captured(lambda: self._graph_cache.reader(self.base(*form), form, weights, sets))

    def _captured(self, capture: Callable[[], Value]) -> Value:
        """What is captured: where there is no memory for it beside full weights, once more without them."""
        try:
            return capture()
        except NoRoom:
            if not self.drop_full_weights():
                raise
        return capture()

    def make_room(self, cost: Cost, form: BaseForm) -> None:
        """Give up full weights where a trial of this cost that captures nothing has not enough memory beside them."""
        if self.device == "cpu":
            return
        torch.cuda.empty_cache()  # what lies in a graph's pool is of no use to it
        if cost.reserved_memory_mib - self._bases.mib_of(form) > free_memory_mib(self.device):
            self.drop_full_weights()

    def drop_full_weights(self) -> bool:
        """Give up full weights and the graphs that read them, and keep none from now on; True if there were any."""
        if there_were := self._bases.have_full_weights:
            self._graph_cache.clear()
        self._bases.drop_full_weights()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        return there_were

    def give_up(self) -> bool:
        """`forget` where memory ran out: from now on no full weights are kept, see trainables.models.full_weights."""
        had_full_weights = self.drop_full_weights()
        return self.forget() or had_full_weights

    def forget(self) -> bool:
        """Drop all cached bases, graphs and readings; True if more than one object went, so a retry may fit."""
        several = len(self._bases) + len(self._graph_cache) > 1 or self._bases.have_full_weights
        self._graph_cache.clear()
        self.readings.clear()
        self._validation = None
        self._bases.clear()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        return several
