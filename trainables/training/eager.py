"""The eager engine: the training step as PyTorch executes Python, one operation at a time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs

from trainables.evaluation.held_out import EvalBatches, mean_nats
from trainables.models.chunked_loss import supervised
from trainables.models.core import core_of, set_checkpointing
from trainables.models.dropout_mask import DropoutMasks
from trainables.models.lean import lean_loss, lean_step
from trainables.models.padding_free import FlatRows
from trainables.models.peft_forward import follow_protocol
from trainables.training.batches import Batch
from trainables.training.engine import (
    MAX_GRAD_NORM,
    flattened,
    scaling_of,
    set_scaling,
    standard_loss,
    unflatten,
)
from trainables.training.optimizers import moments_of, optimizer_of, set_moments, set_rate
from trainables.training.schedule import rate_at
from trainables.values.checkpoint import EngineState
from trainables.values.config import ComputeDtype, TrialConfig

if TYPE_CHECKING:
    from peft import PeftModel


class EagerEngine:
    """Trains the adapter that is attached to a model; the Engine that runs anywhere.

    Weights of the base stay in the compute dtype without autocast, and the adapter's products are in it, see
    trainables.models.peft_forward; the adapter itself, its gradients and moments are float32. With float16 the loss
    is scaled and a step whose gradients overflow is skipped, the scale halved (Micikevicius et al. 2018,
    arXiv:1710.03740).

    Attributes:
        parameters: the adapter's matrices.
        optimizer: on them, as the config names it.
        n_bad_gradients: see Engine.
    """

    def __init__(self, model: "PeftModel", config: TrialConfig, *, compute_dtype: ComputeDtype, device: str) -> None:
        """
        Args:
            model: the base with a fresh adapter.
            config: its recipe (loop, optimizer, rates, checkpointing) and seed are used.
            compute_dtype: of the base.
            device: "cuda" or "cpu", where the model is.
        """
        self._model = model
        self._device = device
        self._lean = config.loop == "lean"
        self._accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision="fp16" if compute_dtype == "float16" else "no",
            kwargs_handlers=[AutocastKwargs(enabled=False)],  # loss scaling only
        )
        self._masks = DropoutMasks(config.seed, device)
        follow_protocol(model, self._masks)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        fused = self._lean and device == "cuda"
        self._bare_optimizer = optimizer_of(config, self.parameters, fused=fused)
        self.optimizer = self._accelerator.prepare(self._bare_optimizer)
        self._config, self._n_steps = config, 0
        set_checkpointing(core_of(model), config.gradient_checkpointing)
        self.n_bad_gradients = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def loss_scale(self) -> float:
        """See Engine."""
        scaler = self._accelerator.scaler
        return float(scaler.get_scale()) if scaler is not None else 1.0

    def step(self, input_ids: torch.Tensor, labels: torch.Tensor, lengths: Sequence[int] = ()) -> torch.Tensor:
        """Do one optimizer step.

        Args:
            input_ids, labels: (batch, length), still on the host; labels are IGNORE where no loss is taken.
            lengths: tokens of each row, which the lean loop then lays one after the other.
        Returns:
            The batch's mean loss in nats, a detached float32 scalar on the device (no synchronisation).
        """
        if not core_of(self._model).training:
            self._model.train()
        set_rate(self._bare_optimizer, rate_at(self._config, self._n_steps))
        loss = self._lean_step(input_ids, labels, lengths) if self._lean else self._standard_step(input_ids, labels)
        norm = self._accelerator.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        self.n_bad_gradients += ~torch.isfinite(norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._n_steps += 1
        return loss.detach()

    def begin_moments(self) -> None:
        """Have the optimizer make its state, by an update from gradients of zero, which moves nothing."""
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self._bare_optimizer.step()
        self._bare_optimizer.zero_grad()

    def run(self, batches: Sequence[Batch]) -> torch.Tensor:
        """One step a batch, see Engine."""
        return torch.stack([self.step(*batch) for batch in batches])

    def eval_loss(self, rows: EvalBatches) -> float:
        """See Engine."""
        self._model.eval()
        return float(mean_nats(self._model, rows))

    def state(self) -> EngineState:
        """See Engine."""
        return EngineState(
            weights=flattened(self.parameters),
            **moments_of(self._bare_optimizer, self.parameters),
            n_bad_gradients=int(self.n_bad_gradients),
            n_steps=int(self._masks.n_steps),
            **scaling_of(self._accelerator.scaler),
        )

    @torch.no_grad()
    def restore(self, state: EngineState) -> None:
        """See Engine."""
        unflatten(state.weights, self.parameters)
        set_moments(self._bare_optimizer, self.parameters, state)
        self._n_steps = state.n_steps
        self._masks.n_steps.fill_(state.n_steps)
        self.n_bad_gradients.fill_(state.n_bad_gradients)
        set_scaling(self._accelerator.scaler, state)

    def _standard_step(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Forward and backward pass; returns the loss."""
        with self._masks.step(*input_ids.shape):
            loss = standard_loss(self._model, input_ids.to(self._device), labels.to(self._device))
            self._accelerator.backward(loss)
        return loss

    def _lean_step(self, input_ids: torch.Tensor, labels: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Likewise."""
        batch, flat = tuple(input_ids.shape), None
        positions, targets = supervised(labels)  # on the host: nothing waits for the device
        if lengths:
            flat = FlatRows.on_host(lengths)
            input_ids, positions = flat.taken(input_ids), flat.found(positions, batch[1])
            flat = flat.to(self._device)
        ids, at, wanted = (t.to(self._device, non_blocking=True) for t in (input_ids, positions, targets))
        with lean_step(self._model, self._masks, batch, flat):
            loss = lean_loss(self._model, ids, at, wanted, flat)
            self._accelerator.backward(loss)
        return loss
