"""The training step: AdamW on the adapter alone, gradient clipping, float16 with loss scaling.

An engine owns the optimizer of one adapter and nothing global; `step` takes one padded batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from torch.nn import functional as F

from trainables.config import ComputeDtype, TrialConfig
from trainables.data import IGNORE

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

MAX_GRAD_NORM = 1.0
BETAS = (0.9, 0.999)
EPSILON = 1e-8
LOSS_CHUNK_TOKENS = 256
"""Supervised tokens whose logits exist at once in the lean loop."""


class EagerEngine:
    """One operation at a time, as PyTorch executes Python.

    Weights of the base stay in the compute dtype without autocast; the adapter, its gradients and
    moments are float32 (peft casts its input). With float16 the loss is scaled and a step whose
    gradients overflow is skipped, the scale halved (Micikevicius et al. 2018, arXiv:1710.03740).

    Attributes:
        n_bad_gradients: steps whose gradient norm was not finite; a scalar on the device.
    """

    def __init__(self, model: "PeftModel", config: TrialConfig, *, compute_dtype: ComputeDtype, device: str) -> None:
        self._model = model
        self._device = device
        self._loss = standard_loss if config.loop == "standard" else lean_loss
        self._accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision="fp16" if compute_dtype == "float16" else "no",
            kwargs_handlers=[AutocastKwargs(enabled=False)],  # loss scaling only
        )
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        fused = config.loop == "lean" and device == "cuda"
        self.optimizer = self._accelerator.prepare(
            torch.optim.AdamW(
                self.parameters, lr=config.learning_rate, betas=BETAS, eps=EPSILON, weight_decay=0.0, fused=fused
            )
        )
        self.n_bad_gradients = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by before the backward pass; 1 unless the arithmetic is float16."""
        scaler = self._accelerator.scaler
        return float(scaler.get_scale()) if scaler is not None else 1.0

    def step(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Do one optimizer step.

        Args:
            input_ids, labels: (batch, length), still on the host; labels are IGNORE where no loss is taken.
        Returns:
            The batch's mean loss in nats, a detached float32 scalar on the device (no synchronisation).
        """
        self._model.train()
        loss = self._loss(self._model, input_ids, labels, self._device)
        self._accelerator.backward(loss)
        norm = self._accelerator.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        self.n_bad_gradients += ~torch.isfinite(norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def standard_loss(model: "PeftModel", input_ids: torch.Tensor, labels: torch.Tensor, device: str) -> torch.Tensor:
    """Mean loss from the logits of every position, as a stock training script takes it."""
    logits = model(input_ids=input_ids.to(device), use_cache=False).logits.float()  # (batch, length, vocabulary)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(device))


def lean_loss(model: "PeftModel", input_ids: torch.Tensor, labels: torch.Tensor, device: str) -> torch.Tensor:
    """The same mean loss from the logits of supervised tokens only, a chunk of them at a time."""
    core = model.get_base_model()
    with _fused_activations(core):
        hidden = core.transformer(input_ids=input_ids.to(device), use_cache=False).last_hidden_state
    wanted = F.pad(labels[:, 1:], (0, 1), value=IGNORE).flatten()  # what each position should predict
    positions = (wanted != IGNORE).nonzero().flatten()  # found on the host: no synchronisation
    states = hidden.flatten(0, 1).index_select(0, positions.to(device, non_blocking=True))  # (supervised, width)
    return _ChunkedLoss.apply(states, core.lm_head.weight, wanted[positions].to(device, non_blocking=True))


@contextmanager
def _fused_activations(core: "PreTrainedModel") -> Iterator[None]:
    """Inside, GPT-2's gelu_new is one kernel that keeps its input; the stock one keeps four tensors of that size."""
    if core.config.activation_function != "gelu_new":
        yield
        return
    stock = [block.mlp.act for block in core.transformer.h]
    fused = torch.nn.GELU(approximate="tanh")
    try:
        for block in core.transformer.h:
            block.mlp.act = fused
        yield
    finally:
        for block, act in zip(core.transformer.h, stock, strict=True):
            block.mlp.act = act


class _ChunkedLoss(torch.autograd.Function):
    """Mean cross-entropy under a frozen head, its gradient made in the forward pass.

    With p = softmax(W h): loss = -log p[t], and d loss / d h = W^T (p - onehot(t)). Only one
    chunk's p is ever alive; the gradient is kept unscaled in float32, so that float16 loses none of it.
    """

    @staticmethod
    def forward(ctx, states: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        gradient = torch.empty_like(states, dtype=torch.float32)
        total = torch.zeros((), device=states.device)
        for start in range(0, len(states), LOSS_CHUNK_TOKENS):
            chunk = slice(start, start + LOSS_CHUNK_TOKENS)
            loss, gradient[chunk] = _loss_and_gradient(states[chunk], head, targets[chunk, None])
            total += loss
        ctx.save_for_backward(gradient)
        ctx.dtype = states.dtype
        return total / len(states)

    @staticmethod
    def backward(ctx, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * (upstream / len(gradient))).to(ctx.dtype), None, None


def _loss_and_gradient(
    states: torch.Tensor, head: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss of one chunk and its gradient to the states, (chunk, width); frees its logits on return."""
    log_p = F.linear(states, head).float().log_softmax(dim=-1)  # (chunk, vocabulary)
    loss = -log_p.gather(1, targets).sum()
    p = log_p.exp_()
    p.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=p.dtype))
    return loss, F.linear(p.to(head.dtype), head.T)
