"""One trial on one device: a config in, one Measurement a rung out, an adapter at the end.

bench = Bench(workload, device="cuda")
trial = Trial(config, bench)
for measurement in trial.measurements():
    ...                              # may stop early: pruned
files = trial.adapter_files()
trial.close()
"""

import gc
import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from trainables import adapter, base_model, data, evaluation, memory
from trainables.config import Cost, Measurement, Precision, TrialConfig, Workload, rungs
from trainables.device import device_id, device_name
from trainables.device_turn import DeviceTurn
from trainables.errors import ConfigError, TrialFailed
from trainables.training import EagerEngine

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

N_TIMED_STEPS = 10


class Bench:
    """What a worker keeps between trials: the tokens and one base model on the device."""

    def __init__(self, workload: Workload, device: str) -> None:
        self.workload = workload
        self.device = device
        self.rows = data.load(workload.data_folder)
        self.turn = DeviceTurn(device_id(device))
        self._bases: dict[Precision, PreTrainedModel] = {}

    def base(self, precision: Precision) -> "PreTrainedModel":
        """The frozen base; on a GPU it is the only one resident, so that memory can be measured."""
        if precision not in self._bases:
            if self.device == "cuda":
                self.forget_bases()
            self._bases[precision] = base_model.load(self.workload, precision, self.device)
            if self.device == "cuda":
                self._warm_up(precision)
        return self._bases[precision]

    def forget_bases(self) -> None:
        """Free every base; the next trial loads its own anew."""
        self._bases.clear()
        gc.collect()  # a 4-bit weight refers to its module and back: only this frees it
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _warm_up(self, precision: Precision) -> None:
        """Let libraries allocate the workspaces that they keep: they are no trial's leak."""
        config = TrialConfig(precision=precision, rank=1, alpha=1)
        model = adapter.attach(self._bases[precision], config, base_name=self.workload.base_model)
        try:
            engine = EagerEngine(model, config, compute_dtype=self.workload.compute_dtype, device=self.device)
            ids = torch.zeros(1, 8, dtype=torch.int64)
            engine.step(ids, ids)
        finally:
            adapter.detach(model)


class Trial:
    """A config being trained on a bench. Owns its adapter; `close` gives the base back untouched."""

    def __init__(self, config: TrialConfig, bench: Bench, *, cost: Cost | None = None) -> None:
        """
        Args:
            cost: of this config's cost cell, where it is known already; measured here otherwise.
        Raises:
            ConfigError: targets match no module, or rows are longer than the base has positions.
            TrialFailed: the device has too little memory (state "oom").
        """
        self.config = config
        self._bench = bench
        base = bench.base(config.precision)
        if config.max_length_tokens > base.config.n_positions:
            raise ConfigError(
                f"max_length_tokens is {config.max_length_tokens}, the base has {base.config.n_positions} positions"
            )
        self._end = base.config.eos_token_id
        self._resident_mib = memory.allocated_mib(bench.device)
        try:
            with oom_as_failure():
                self.cost = cost or self._measure_cost(base)
                self._model = self._attach(base)
                self._engine = self._engine_of(self._model)
        except TrialFailed:
            bench.forget_bases()  # half an adapter may be on it
            raise

    def _attach(self, base: "PreTrainedModel") -> "PeftModel":
        return adapter.attach(base, self.config, base_name=self._bench.workload.base_model)

    def _engine_of(self, model: "PeftModel") -> EagerEngine:
        return EagerEngine(
            model, self.config, compute_dtype=self._bench.workload.compute_dtype, device=self._bench.device
        )

    def _measure_cost(self, base: "PreTrainedModel") -> Cost:
        """Memory and time of full synthetic batches on a throw-away adapter (measurement protocol 1)."""
        with self._bench.turn.alone():
            return self._measure_cost_now(base)

    def _measure_cost_now(self, base: "PreTrainedModel") -> Cost:
        shape = (self.config.batch_size, self.config.max_length_tokens)
        ids = torch.randint(base.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
        model = self._attach(base)
        try:
            engine = self._engine_of(model)
            engine.step(ids, ids)  # the optimizer's state exists from here on
            seconds = [_timed(lambda: engine.step(ids, ids), self._bench.device) for _ in range(N_TIMED_STEPS)]
            peak = memory.peak_of(lambda: engine.step(ids, ids), self._bench.device, lambda: _owners(model, engine))
        finally:
            adapter.detach(model)
        p10, median, p90 = np.percentile(seconds, [10, 50, 90]).tolist()
        return Cost(
            peak_memory_mib=peak.allocated_mib,
            reserved_memory_mib=peak.reserved_mib,
            seconds_per_step=median,
            seconds_per_step_p10=p10,
            seconds_per_step_p90=p90,
            tokens_per_second=ids.numel() / median,
            device=device_name(self._bench.device),
            breakdown=peak.breakdown,
        )

    def measurements(self) -> Iterator[Measurement]:
        """Train to each rung in turn and measure there.

        Raises:
            TrialFailed: loss or gradient is not finite ("diverged"), or memory ran out ("oom").
        """
        batches = self._batches()
        torch.manual_seed(self.config.seed)  # dropout, equal for a trial and its twin
        done = 0
        for rung in rungs(self.config.max_steps):
            with self._bench.turn.shared(), oom_as_failure():
                # no name for the losses: CPython 3.12 keeps a closed generator's locals alive
                measurement = self._measure(
                    rung, torch.stack([self._engine.step(*next(batches)) for _ in range(rung - done)])
                )
            done = rung
            yield measurement

    def _measure(self, step: int, losses: torch.Tensor) -> Measurement:
        """What is known at a rung, from the training losses since the last one.

        Raises:
            TrialFailed: a loss is not finite ("diverged").
        """
        train_loss = float(losses.mean())
        eval_loss = evaluation.eval_loss(self._model, self._bench.rows["search"])
        if not (math.isfinite(train_loss) and math.isfinite(eval_loss)):
            raise TrialFailed("diverged", self._fault(step, losses, eval_loss))
        return Measurement(
            step=step,
            train_loss_nats=train_loss,
            eval_loss_nats=eval_loss,
            peak_memory_mib=self.cost.peak_memory_mib,
            reserved_memory_mib=self.cost.reserved_memory_mib,
            seconds_per_step=self.cost.seconds_per_step,
            tokens_per_second=self.cost.tokens_per_second,
        )

    def _fault(self, step: int, losses: torch.Tensor, eval_loss: float) -> str:
        """What was not finite, and since when."""
        bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        first = f"training loss from step {step - len(losses) + bad[0] + 1}" if bad else f"held-out loss {eval_loss}"
        n_gradients = int(self._engine.n_bad_gradients)
        return f"not finite at step {step}: {first}; gradients in {n_gradients} steps so far"

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Endless batches; each pass visits all rows in an order drawn from the trial's seed."""
        rows = self._bench.rows["train"]
        size = self.config.batch_size
        generator = torch.Generator().manual_seed(self.config.seed)
        order: list[int] = []
        while True:
            while len(order) < size:
                order += torch.randperm(len(rows), generator=generator).tolist()
            batch, order = order[:size], order[size:]
            input_ids, labels = data.pad(
                [rows[i] for i in batch], max_length_tokens=self.config.max_length_tokens, pad_id=self._end
            )
            yield input_ids, labels

    def adapter_files(self) -> dict[str, bytes]:
        """The adapter as it is now, as peft's files by name."""
        return adapter.to_files(self._model)

    def close(self) -> None:
        """Detach the adapter; the trial cannot be used afterwards.

        Raises:
            RuntimeError: more than memory.MAX_LEAK_MIB stay on the device; the next trial's figures would be wrong.
        """
        adapter.detach(self._model)
        del self._model, self._engine
        if self._leak_mib() > memory.MAX_LEAK_MIB:
            gc.collect()
            if (leak := self._leak_mib()) > memory.MAX_LEAK_MIB:
                raise RuntimeError(f"{leak:.1f} MiB stay on the device after a trial (at most {memory.MAX_LEAK_MIB:g})")

    def _leak_mib(self) -> float:
        return memory.allocated_mib(self._bench.device) - self._resident_mib


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


def _timed(work, device: str) -> float:
    """Seconds of one call, by device events on a GPU."""
    if device == "cpu":
        start = perf_counter()
        work()
        return perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
