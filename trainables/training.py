"""The training step: AdamW on the adapter alone, gradient clipping, float16 with loss scaling.

An engine owns the optimizer of one adapter and nothing global; `step` takes one padded batch.
"""

from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs

from trainables.config import ComputeDtype, TrialConfig

if TYPE_CHECKING:
    from peft import PeftModel

MAX_GRAD_NORM = 1.0
BETAS = (0.9, 0.999)
EPSILON = 1e-8


class EagerEngine:
    """One operation at a time, full logits: what a stock training script does.

    Weights of the base stay in the compute dtype without autocast; the adapter, its gradients and
    moments are float32 (peft casts its input). With float16 the loss is scaled and a step whose
    gradients overflow is skipped, the scale halved (Micikevicius et al. 2018, arXiv:1710.03740).
    """

    def __init__(self, model: "PeftModel", config: TrialConfig, *, compute_dtype: ComputeDtype, device: str) -> None:
        self._model = model
        self._accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision="fp16" if compute_dtype == "float16" else "no",
            kwargs_handlers=[AutocastKwargs(enabled=False)],  # loss scaling only
        )
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = self._accelerator.prepare(
            torch.optim.AdamW(self._parameters, lr=config.learning_rate, betas=BETAS, eps=EPSILON, weight_decay=0.0)
        )

    def step(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Do one optimizer step.

        Args:
            input_ids, labels: (batch, length) on the model's device; labels are IGNORE where no loss is taken.
        Returns:
            The batch's mean loss in nats, a detached float32 scalar on the device (no synchronisation).
        """
        self._model.train()
        logits = self._model(input_ids=input_ids, use_cache=False).logits.float()  # (batch, length, vocabulary)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        self._accelerator.backward(loss)
        self._accelerator.clip_grad_norm_(self._parameters, MAX_GRAD_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()
