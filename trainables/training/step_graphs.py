"""The training step as CUDA graphs: captured once, replayed for many trials without running Python again.

StepGraphs are captured on the bare base with an adapter of their own, whose rank is padded; what a trial chooses (rank,
alpha, learning rate, seed) lies in tensors on the device. A padded row of A and the padded column of B that belongs to
it are both zero, so both gradients are zero and AdamW leaves them zero: padding takes no part in the update.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from trainables.capture.capture import attached_matrices, captured, on_stream
from trainables.evaluation.held_out import EvalBatches, mean_nats
from trainables.models import lora
from trainables.models.branches import settle
from trainables.models.core import set_checkpointing
from trainables.models.dropout_mask import DropoutMasks
from trainables.models.full_weights import dequantizing, kept_weights
from trainables.models.lean import lean_loss, lean_step
from trainables.models.peft_forward import follow_protocol
from trainables.training.batches import StepShape, unpacked
from trainables.training.engine import (
    MAX_GRAD_NORM,
    flattened,
    joined,
    parts_of,
    scaling_of,
    set_scaling,
    standard_loss,
    standard_step,
    unflatten,
)
from trainables.training.graph_key import graph_key
from trainables.training.optimizers import adamw
from trainables.values.checkpoint import EngineState
from trainables.values.config import ComputeDtype, TrialConfig

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class StepGraphs:
    """CUDA graphs of training steps and of the evaluation on one base; they serve one trial after the other.

    Attributes:
        key: what they can train.
        eval_batches: what an adapter is evaluated on.
        loss_nats: of the last replayed step.
        eval_loss_nats: of the last replayed evaluation.
        n_bad_gradients: steps since `load` whose gradient norm was not finite; like both losses a scalar on the device.
    """

    def __init__(
        self,
        base: "PreTrainedModel",
        config: TrialConfig,
        *,
        eval_batches: EvalBatches,
        compute_dtype: ComputeDtype,
        pool: tuple[int, int] | None,
        stream: torch.cuda.Stream | None,
        warm: set[Hashable] | None = None,
    ) -> None:
        """
        Args:
            base: without an adapter.
            config: any that has the graphs' key.
            eval_batches: what an adapter is evaluated on.
            compute_dtype: of the base.
            pool: from torch.cuda.graph_pool_handle; graphs that are never replayed at the same time may share it, since
                nothing in it outlives a replay.
            stream: to capture on; libraries keep a workspace for each stream that they have seen.
            warm: kernels of the steps that were done on it, see GraphKey, and whether by full weights; completed here.
        """
        self.key = graph_key(config)
        self._base, self._kept = base, kept_weights(base)  # which the graphs read
        self._config = replace(config, rank=self.key.rank)
        self.eval_batches = eval_batches
        self._pool, self._stream = pool, stream
        self._warm = set() if warm is None else warm
        self._evaluation: torch.cuda.CUDAGraph | None = None
        self._steps: dict[tuple[StepShape, bool], tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}  # and whether timed
        device = base.device  # a CPU can do the steps, but not capture them
        self._masks = DropoutMasks(config.seed, device)
        zero = partial(torch.zeros, (), device=device)
        self._scaling, self._learning_rate = zero(), zero()
        self.loss_nats, self.eval_loss_nats = zero(), zero(dtype=torch.float64)
        self.n_bad_gradients = zero(dtype=torch.int64)
        self._scaler = torch.amp.GradScaler(device.type, enabled=compute_dtype == "float16")
        self._fresh_scale = self._scaler.state_dict()
        self._whole, self._weights = joined(lora.blank_matrices(base, self._config))
        self._optimizer = adamw([self._whole], self._learning_rate, fused=True, capturable=device.type == "cuda")
        self._begin_states()

    def _begin_states(self) -> None:
        """Have optimizer and scaler allocate what they keep: in a captured step each replay would make it anew."""
        self._scaler.scale(self._scaling)
        self._whole.grad = torch.zeros_like(self._whole)
        self._optimizer.step()
        self._whole.grad = None

    def capture(self, shapes: Iterable[StepShape], *, timed: Iterable[StepShape] = ()) -> None:
        """Capture the steps that are missing, and the evaluation; the base is bare before and afterwards.

        Args:
            timed: of steps whose time is that of the base's form: they dequantize 4-bit weights, even if the base keeps
                full ones.
        """
        shapes = self._missing(shapes if self._kept else [*shapes, *timed], is_timed=False)
        timed = self._missing(timed if self._kept else (), is_timed=True)
        if not shapes and not timed:
            return
        with self._attached() as model:
            self._capture(model, shapes, is_timed=False)
            if timed:
                with dequantizing(model):
                    self._capture(model, timed, is_timed=True)

    def _missing(self, shapes: Iterable[StepShape], *, is_timed: bool) -> list[StepShape]:
        return [shape for shape in dict.fromkeys(shapes) if (shape, is_timed) not in self._steps]

    def _capture(self, model: "PeftModel", shapes: Sequence[StepShape], *, is_timed: bool) -> None:
        if not shapes:
            return
        kernels = self.key.kernels, bool(kept_weights(model))
        if kernels not in self._warm:
            self._warm_up(model, shapes[0])
            self._warm.add(kernels)
        if self._evaluation is None:
            model.eval()
            self._evaluation = self._captured(lambda: self._evaluate(model))
        model.train()
        for shape in shapes:
            inputs = _blank(shape)
            self._steps[shape, is_timed] = (self._captured(partial(self._step, model, shape, inputs)), inputs)

    @contextmanager
    def _attached(self) -> "Iterator[PeftModel]":
        """The base with the adapter that steps are captured on."""
        with attached_matrices(self._base, self._config, self._weights, self._scaling) as model:
            follow_protocol(model, self._masks)
            set_checkpointing(self._base, self.key.gradient_checkpointing)
            yield model

    def _captured(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = captured(work, pool=self._pool, stream=self._stream)
        self._forget_gradients()  # they lie in the pool, whose memory the next capture may take
        return graph

    def _warm_up(self, model: "PeftModel", shape: StepShape) -> None:
        """Let libraries allocate what they keep, on the stream of the captures, and kernels be loaded."""
        model.train()
        with on_stream(self._stream):
            self._step(model, shape, _blank(shape))
            if self._evaluation is None:
                self._evaluate(model.eval())
        self._forget_gradients()

    def _forget_gradients(self) -> None:
        for weight in (*self._weights.values(), self._whole):
            weight.grad = None

    def _step(self, model: "PeftModel", shape: StepShape, inputs: torch.Tensor) -> None:
        """The work of one step's graph: forward, backward, clipping, AdamW.

        Args:
            inputs: (n,), a GraphInput's vector of this shape, on the device.
        """
        ids, flat, wanted = unpacked(shape, inputs)
        batch, is_lean = (shape.n_rows, shape.length), self.key.loop == "lean"
        self._forget_gradients()
        with lean_step(model, self._masks, batch, flat) if is_lean else standard_step(self._base, self._masks, batch):
            loss = lean_loss(model, ids, *wanted, flat=flat) if is_lean else standard_loss(model, ids, *wanted)
            self._scaler.scale(loss).backward()
            settle()
        gradient = torch.cat([_gradient_of(weight) for weight in self._weights.values()])
        self._forget_gradients()
        self._whole.grad = gradient
        self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_([self._whole], MAX_GRAD_NORM)
        self.n_bad_gradients += ~torch.isfinite(norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.loss_nats.copy_(loss.detach())

    def _evaluate(self, model: "PeftModel") -> None:
        """The work of the evaluation's graph."""
        self.eval_loss_nats.copy_(mean_nats(model, self.eval_batches))

    @torch.no_grad()
    def load(self, config: TrialConfig, weights: Sequence[torch.Tensor]) -> None:
        """Begin a trial: its adapter's weights, fresh moments, its own scaling.

        Args:
            weights: A and B of the trial's own rank, in the order in which peft attaches them; so in what follows.
        """
        self._whole.zero_()
        for unpadded, weight in zip(_unpadded(self._weights.values(), weights), weights, strict=True):
            unpadded.copy_(weight)
        for value in self._slot.values():
            value.zero_()
        self._masks.restart(config.seed)
        self._scaling.fill_(config.scaling)
        self.n_bad_gradients.zero_()
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(self._fresh_scale)

    @torch.no_grad()
    def store(self, weights: Sequence[torch.Tensor]) -> None:
        """Copy the adapter as it is now, without its padding, into the trial's own weights."""
        for unpadded, weight in zip(_unpadded(self._weights.values(), weights), weights, strict=True):
            weight.copy_(unpadded)

    def state(self, weights: Sequence[torch.Tensor]) -> EngineState:
        """Where training stands, on the host and without padding.

        Args:
            weights: of the trial; only their shapes are used.
        """
        vectors = {name: flattened(views) for name, views in self._views(weights).items()}
        return EngineState(
            **vectors,
            n_updates=int(self._slot["step"]),
            n_bad_gradients=int(self.n_bad_gradients),
            n_steps=int(self._masks.n_steps),
            **scaling_of(self._scaler),
        )

    def restore(self, state: EngineState, weights: Sequence[torch.Tensor]) -> None:
        """Go on, after `load`, from where `state` was taken.

        Args:
            weights: of the trial; only their shapes are used.
        Raises:
            ValueError: the state is of an adapter of another size.
        """
        for name, views in self._views(weights).items():
            unflatten(getattr(state, name), views)
        self._slot["step"].fill_(state.n_updates)
        self._masks.n_steps.fill_(state.n_steps)
        self.n_bad_gradients.fill_(state.n_bad_gradients)
        set_scaling(self._scaler, state)

    @property
    def _slot(self) -> dict[str, torch.Tensor]:
        """AdamW's own tensors: `exp_avg`, `exp_avg_sq`, `step`."""
        return self._optimizer.state[self._whole]

    def _views(self, weights: Sequence[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
        """The unpadded tensors behind each vector of EngineState."""
        moments = {"first_moments": self._slot["exp_avg"], "second_moments": self._slot["exp_avg_sq"]}
        vectors, padded = {"weights": self._whole.detach()} | moments, list(self._weights.values())
        return {name: _unpadded(parts_of(vector, padded), weights) for name, vector in vectors.items()}

    def replay(self, shape: StepShape, inputs: torch.Tensor, rate: torch.Tensor, *, is_timed: bool = False) -> None:
        """Do one step.

        Args:
            shape, inputs: a GraphInput, its vector on the device.
            rate: the step's learning rate, a float32 scalar on the device.
            is_timed: by a step that was captured to be timed.
        """
        self._learning_rate.copy_(rate)
        graph, static_inputs = self._steps[shape, is_timed and bool(self._kept)]
        static_inputs.copy_(inputs)
        graph.replay()

    def evaluate(self) -> None:
        """Set `eval_loss_nats` to the loss of the adapter as it is now."""
        self._evaluation.replay()

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by before the backward pass; 1 unless the arithmetic is float16."""
        return float(self._scaler.get_scale())


def _gradient_of(weight: torch.Tensor) -> torch.Tensor:
    """(n,), zeros where the loss does not depend on the weight: AdamW leaves it as it is then, without decay."""
    return (torch.zeros_like(weight) if weight.grad is None else weight.grad).flatten()


def _unpadded(padded: Iterable[torch.Tensor], weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Views of the parts of padded tensors that the trial's own weights fill."""
    return [p[: weight.shape[0], : weight.shape[1]] for p, weight in zip(padded, weights, strict=True)]


def _blank(shape: StepShape) -> torch.Tensor:
    """Inputs of a shape to capture with: every token is 0, every target too; rows are about as long as each other."""
    inputs = torch.zeros(sum(shape.sizes), dtype=torch.int64)
    lengths = inputs.split(shape.sizes)[1]
    for row in range(len(lengths)):
        lengths[row] = (shape.n_flat + row) // shape.n_rows
    return inputs.cuda()
