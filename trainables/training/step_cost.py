"""Memory and time of one training step, measured on a full synthetic batch (measurement protocol 2)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainables.cost import memory
from trainables.cost.device import device_name
from trainables.models.lora import matrices_of
from trainables.training.batches import Batch, packed
from trainables.training.eager import EagerEngine
from trainables.training.graph import GraphEngine
from trainables.training.step_graphs import StepGraphs
from trainables.values.config import ComputeDtype, TrialConfig
from trainables.values.results import Cost

if TYPE_CHECKING:
    from peft import PeftModel

N_TIMED_STEPS = {"cuda": 10, "cpu": 5}
"""By kind of device; on a CPU time is shown and, unless one asks for it, decides nothing."""


class MeasuredStep:
    """A step on a throw-away adapter, whose time and memory are measured in turn: only its time needs the device alone.

    The optimizer's state is there for as long as this is.
    """

    def __init__(
        self,
        model: "PeftModel",
        config: TrialConfig,
        batch: Batch,
        *,
        graphs: StepGraphs | None,
        compute_dtype: ComputeDtype,
        device: str,
    ) -> None:
        """
        Args:
            model: the base with a throw-away adapter of this config.
            batch: full, see trainables.training.batches.full_batch.
            graphs: where a trial replays them: then a replay is timed, else a step of the eager engine. The peak is
                always that of the eager step, as a graph's memory does not show on replay.
            device: "cuda" or "cpu".
        """
        self._engine = EagerEngine(model, config, compute_dtype=compute_dtype, device=device)
        self._engine.begin_moments()  # as after any step; the first one is not timed
        self._step = partial(self._engine.step, *batch)  # no lambda: a failure's traceback would keep it, and the base
        self._begin_replay = partial(_replay_of, graphs, model, config, batch, device) if graphs else None
        self._model, self._device, self._n_tokens = model, device, batch[0].numel()

    def seconds(self) -> list[float]:
        """Of each of as many steps as N_TIMED_STEPS says."""
        work = self._begin_replay() if self._begin_replay else self._step  # what a replay reads is gone afterwards
        return _timed(work, self._device)

    def cost(self, seconds: Sequence[float], others_mib: float) -> Cost:
        """What one more step needs, beside the time of those before.

        Args:
            others_mib: allocated on the device beside what this trial needs; left out of every figure.
        """
        peak = memory.peak_of(self._step, self._device, partial(owners_of, self._model, self._engine))
        p10, median, p90 = np.percentile(seconds, [10, 50, 90]).tolist()
        return Cost(
            peak_memory_mib=peak.allocated_mib - others_mib,
            reserved_memory_mib=peak.reserved_mib - others_mib,
            seconds_per_step=median,
            seconds_per_step_p10=p10,
            seconds_per_step_p90=p90,
            tokens_per_second=self._n_tokens / median,
            device=device_name(self._device),
            breakdown=replace(peak.breakdown, rest_mib=peak.breakdown.rest_mib - others_mib),
        )


def _replay_of(
    graphs: StepGraphs, model: "PeftModel", config: TrialConfig, batch: Batch, device: str
) -> Callable[[], None]:
    """Replays the step of a batch again and again, from the adapter of the model."""
    GraphEngine(matrices_of(model).values(), config, graphs)  # loads the adapter into the graphs
    shape, inputs = packed(batch, config.loop)
    inputs, rate = inputs.to(device), torch.tensor(config.learning_rate, device=device)
    return lambda: graphs.replay(shape, inputs, rate, is_timed=True)


def _timed(step: Callable[[], object], device: str) -> list[float]:
    """Seconds of each of as many steps as N_TIMED_STEPS says, after one; by device events on a GPU."""
    step()
    n_steps = N_TIMED_STEPS[device]
    if device == "cpu":
        marks = [perf_counter()]
        for _ in range(n_steps):
            step()
            marks.append(perf_counter())
        return np.diff(marks).tolist()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(n_steps + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    events[-1].synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in pairwise(events)]


def owners_of(model: "PeftModel", engine: EagerEngine) -> dict[str, list[torch.Tensor]]:
    """The resident tensors of a training step, by the part of MemoryBreakdown that they are."""
    frozen = [t for t in (*model.parameters(), *model.buffers()) if not t.requires_grad]
    constants: list[torch.Tensor] = []
    for tensor in frozen:
        if getattr(tensor, "quant_state", None) is not None:
            constants += _tensors_of(tensor.quant_state)
    moments: list[torch.Tensor] = []
    for slots in engine.optimizer.state.values():
        moments += [value for value in slots.values() if torch.is_tensor(value)]
    return {
        "base_weights": frozen,
        "quantization_constants": constants,
        "adapter": engine.parameters,
        "optimizer": moments,
    }


def _tensors_of(quant_state: Any) -> list[torch.Tensor]:
    """Scales, offset and code books of a bitsandbytes QuantState, and of the one that its scales are quantized by."""
    inner = _tensors_of(quant_state.state2) if quant_state.nested else []
    own = (quant_state.absmax, quant_state.code, quant_state.offset if quant_state.nested else None)
    return inner + [t for t in own if t is not None]
