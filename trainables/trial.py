"""One trial on one device: a config in, one Measurement a rung out, an adapter at the end.

cache = WorkerCache(workload, device="cuda")
trial = Trial(config, cache)
for measurement in trial.measurements():
    ...                              # may stop early: pruned
files = trial.adapter_files()
trial.close()
"""

import gc
import math
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from trainables.capture.capture import CaptureFailed
from trainables.cost import memory
from trainables.cost.device import device_name
from trainables.models import lora
from trainables.training.batches import Batch, packed
from trainables.training.eager import EagerEngine
from trainables.training.graph import GraphEngine, StepGraphs
from trainables.values.checkpoint import Checkpoint
from trainables.values.config import TrialConfig, rungs
from trainables.values.errors import ConfigError, TrialFailed
from trainables.values.results import Cost, Measurement
from trainables.worker_cache import WorkerCache

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

N_TIMED_STEPS = 10
MIN_LOSS_SCALE = 1.0


class Trial:
    """A config being trained on a cache. Owns its adapter; `close` gives the base back untouched.

    Attributes:
        config: what is trained.
        cost: of its cost key.
        fallback: why its engine is eager although a graph was asked for; None where it is what was asked for.
    """

    def __init__(
        self, config: TrialConfig, cache: WorkerCache, *, cost: Cost | None = None, checkpoint: Checkpoint | None = None
    ) -> None:
        """
        Args:
            cost: of this config's cost key, where it is known already; measured here otherwise.
            checkpoint: of this config's trial, to go on from; what is measured then is what it would have measured.
        Raises:
            ConfigError: targets match no module, or rows are longer than the base has positions.
            TrialFailed: the device has too little memory (state "oom"), even for this trial alone.
        """
        self.config = config
        self._cache = cache
        self._checkpoint = checkpoint
        n_positions = cache.base(config.precision).config.max_position_embeddings
        if config.max_length_tokens > n_positions:
            raise ConfigError(f"max_length_tokens is {config.max_length_tokens}, the base has {n_positions} positions")
        self._batches = cache.batches(config)
        try:
            self._begin(cost)
        except TrialFailed:
            if not self._free() and config.engine != "graph":  # half an adapter may be on a base
                raise
            self._begin_alone(cost)

    def _begin_alone(self, cost: Cost | None) -> None:
        """With nothing else on the device; without captured steps, which need memory of their own, if need be."""
        for recorded in (True, False) if self.config.engine == "graph" else (True,):
            try:
                return self._begin(cost, recorded=recorded)
            except TrialFailed as error:
                failure = error
                self._free()
        raise failure

    def _free(self) -> bool:
        """Let go of everything on the device, a step graphs and its base too; see WorkerCache.forget."""
        self._graphs = None
        return self._cache.forget()

    def _begin(self, cost: Cost | None, *, recorded: bool = True) -> None:
        # no name for the base: while a TrialFailed is handled its frames live, and the base must be freed then
        with oom_as_failure():
            self._held = self._cache.held_out(self.config.precision)
            self._graphs, self.fallback = self._recorded() if recorded else (None, "no memory for captured steps")
            self._resident_mib = memory.allocated_mib(self._cache.device)
            self.cost = cost or self._measure_cost(self._cache.base(self.config.precision))
            self._engage()

    def _recorded(self) -> tuple[StepGraphs | None, str | None]:
        """The step graphs that the engine needs, or why it has to do without."""
        if self.config.engine != "graph":
            return None, None
        if self._cache.device != "cuda":
            raise ConfigError("engine is graph, which needs a CUDA GPU; on a CPU it is eager")
        steps = (packed(self._full_batch(), self.config.loop), *self._batches.packed(self.config.loop))
        try:
            return self._cache.graphs(self.config, [shape for shape, _ in steps]), None
        except CaptureFailed as error:
            return None, str(error)

    def _attach(self, base: "PreTrainedModel") -> "PeftModel":
        return lora.attach(base, self.config, base_name=self._cache.workload.base_model)

    def _engage(self) -> None:
        """A fresh adapter and its engine; captured steps have it attached already, so that it need not be."""
        self._model: PeftModel | None = None
        if self._graphs:
            self._matrices = self._cache.fresh_matrices(self.config)
            self._steps = self._batches.packed(self.config.loop)
            self._engine = GraphEngine(self._matrices.values(), self.config, self._graphs)
        else:
            self._model = self._attach(self._cache.base(self.config.precision))
            self._matrices = lora.matrices_of(self._model)
            self._steps = self._batches.batches
            self._engine = self._eager(self._model)

    def _eager(self, model: "PeftModel") -> EagerEngine:
        return EagerEngine(
            model, self.config, compute_dtype=self._cache.workload.compute_dtype, device=self._cache.device
        )

    def _full_batch(self) -> Batch:
        """Synthetic: every token there may be, each supervised."""
        shape = (self.config.batch_size, self.config.max_length_tokens)
        n_words = self._cache.base(self.config.precision).config.vocab_size
        ids = torch.randint(n_words, shape, generator=torch.Generator().manual_seed(0))
        return ids, ids

    def _measure_cost(self, base: "PreTrainedModel") -> Cost:
        """Memory and time of full synthetic batches on a throw-away adapter (measurement protocol 1)."""
        batch, device = self._full_batch(), self._cache.device
        others_mib = self._cache.others_mib(self.config.precision)
        with self._cache.device_lock.alone():
            seconds, peak = self._full_steps(base, batch)
        p10, median, p90 = np.percentile(seconds, [10, 50, 90]).tolist()
        return Cost(
            peak_memory_mib=peak.allocated_mib - others_mib,
            reserved_memory_mib=peak.reserved_mib - others_mib,
            seconds_per_step=median,
            seconds_per_step_p10=p10,
            seconds_per_step_p90=p90,
            tokens_per_second=batch[0].numel() / median,
            device=device_name(device),
            breakdown=replace(peak.breakdown, rest_mib=peak.breakdown.rest_mib - others_mib),
        )

    def _full_steps(self, base: "PreTrainedModel", batch: Batch) -> tuple[list[float], memory.Peak]:
        """Seconds of each step, and the peak; what it takes is gone from the device on return."""
        device = self._cache.device
        model = self._attach(base)
        try:
            eager = self._eager(model)
            eager.step(*batch)  # the optimizer's state exists from here on
            seconds = _timed(self._stepper(model, batch) if self._graphs else lambda: eager.step(*batch), device)
            # A graph's memory does not show on replay: the peak is that of the same step done eagerly.
            return seconds, memory.peak_of(lambda: eager.step(*batch), device, lambda: _owners(model, eager))
        finally:
            lora.detach(model)

    def _stepper(self, model: "PeftModel", batch: Batch) -> Callable[[], None]:
        """Replays one step again and again."""
        GraphEngine(lora.matrices_of(model).values(), self.config, self._graphs)
        shape, inputs = packed(batch, self.config.loop)
        inputs = inputs.to(self._cache.device)
        return lambda: self._graphs.replay(shape, inputs)

    def measurements(self) -> Iterator[Measurement]:
        """Train to each rung in turn, or to those after the checkpoint, and measure there.

        Raises:
            TrialFailed: loss or gradient is not finite ("diverged"), or memory ran out ("oom").
            ValueError: the checkpoint is of an adapter of another size.
        """
        torch.manual_seed(self.config.seed)  # dropout, equal for a trial and its baseline
        done = self._go_on() if self._checkpoint else 0
        for rung in [rung for rung in rungs(self.config.max_steps) if rung > done]:
            with self._cache.device_lock.shared(), oom_as_failure():
                # no name for the losses: CPython 3.12 keeps a closed generator's locals alive
                measurement = self._measure(rung, self._engine.run(self._steps[done:rung]))
            done = rung
            yield measurement

    def _go_on(self) -> int:
        """Take up the checkpoint; returns the steps that it has done."""
        checkpoint, self._checkpoint = self._checkpoint, None
        self._engine.restore(checkpoint.engine)
        torch.set_rng_state(torch.tensor(checkpoint.generators["cpu"]))
        if "cuda" in checkpoint.generators:
            torch.cuda.set_rng_state(torch.tensor(checkpoint.generators["cuda"]))
        return checkpoint.step

    def checkpoint(self, step: int, *, seconds: float) -> Checkpoint:
        """Where the trial stands, between two measurements.

        Args:
            step: of the last one.
            seconds: of training until then.
        """
        generators = {"cpu": torch.get_rng_state().numpy()}
        if self._cache.device == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state().numpy()
        return Checkpoint(
            key=self._cache.workload.key(self.config),
            step=step,
            seconds=seconds,
            engine=self._engine.state(),
            generators=generators,
        )

    def _measure(self, step: int, losses: torch.Tensor) -> Measurement:
        """What is known at a rung, from the training losses since the last one.

        Raises:
            TrialFailed: a loss is not finite ("diverged").
        """
        eval_loss = self._engine.eval_loss(self._held)  # first: the device has it to do when the steps are done
        train_loss = float(losses.mean())
        if not (math.isfinite(train_loss) and math.isfinite(eval_loss)):
            raise TrialFailed("diverged", self._fault(step, losses, eval_loss))
        if self._engine.loss_scale < MIN_LOSS_SCALE:  # float16 skips such steps: the loss alone would not tell
            n_bad = int(self._engine.n_bad_gradients)
            raise TrialFailed("diverged", f"not finite by step {step}: gradients in {n_bad} steps, at any loss scale")
        return Measurement(
            step=step,
            train_loss_nats=train_loss,
            eval_loss_nats=eval_loss,
        )

    def _fault(self, step: int, losses: torch.Tensor, eval_loss: float) -> str:
        """What was not finite, and since when."""
        bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        first = f"training loss from step {step - len(losses) + bad[0] + 1}" if bad else f"held-out loss {eval_loss}"
        n_gradients = int(self._engine.n_bad_gradients)
        return f"not finite at step {step}: {first}; gradients in {n_gradients} steps so far"

    def adapter_files(self) -> dict[str, bytes]:
        """The adapter as it is now, as peft's files by name."""
        return lora.to_files(self.config, self._matrices, base_name=self._cache.workload.base_model)

    def close(self) -> None:
        """Let go of the adapter; the trial cannot be used afterwards.

        Raises:
            RuntimeError: more than memory.MAX_LEAK_MIB stay on the device; the next trial's figures would be wrong.
        """
        if self._model is not None:
            lora.detach(self._model)
        del self._model, self._matrices, self._engine, self._graphs
        if self._leak_mib() > memory.MAX_LEAK_MIB:
            gc.collect()
            if (leak := self._leak_mib()) > memory.MAX_LEAK_MIB:
                raise RuntimeError(f"{leak:.1f} MiB stay on the device after a trial (at most {memory.MAX_LEAK_MIB:g})")

    def _leak_mib(self) -> float:
        return memory.allocated_mib(self._cache.device) - self._resident_mib


@contextmanager
def oom_as_failure() -> Iterator[None]:
    """Turn a CUDA out-of-memory error inside the block into TrialFailed("oom")."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # they hold the tensors that filled the device
        peak = torch.cuda.max_memory_allocated() / memory.MIB
        raise TrialFailed("oom", f"the GPU ran out of memory at {peak:.0f} MiB") from None


def _owners(model: "PeftModel", engine: EagerEngine) -> dict[str, list[torch.Tensor]]:
    """The resident tensors of a training step by the part of MemoryBreakdown that they are."""
    frozen = [t for t in (*model.parameters(), *model.buffers()) if not t.requires_grad]
    states = [t.quant_state for t in frozen if getattr(t, "quant_state", None) is not None]
    return {
        "base_weights": frozen,
        "quantization_constants": [t for state in states for t in _tensors_of(state)],
        "adapter": engine.parameters,
        "optimizer": [t for slots in engine.optimizer.state.values() for t in slots.values() if torch.is_tensor(t)],
    }


def _tensors_of(quant_state) -> list[torch.Tensor]:
    """Scales, offset and code books of a bitsandbytes quantization state; the scales are quantized themselves."""
    inner = _tensors_of(quant_state.state2) if quant_state.nested else []
    own = (quant_state.absmax, quant_state.code, quant_state.offset if quant_state.nested else None)
    return inner + [t for t in own if t is not None]


def _timed(step: Callable[[], object], device: str) -> list[float]:
    """Seconds of each of N_TIMED_STEPS steps after one, by device events on a GPU."""
    step()
    if device == "cpu":
        marks = [perf_counter()]
        for _ in range(N_TIMED_STEPS):
            step()
            marks.append(perf_counter())
        return np.diff(marks).tolist()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(N_TIMED_STEPS + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    events[-1].synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in pairwise(events)]
