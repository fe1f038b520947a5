"""The Hugging Face Trainer with peft, as a stock script runs it: what our training step must agree with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments


class RecordingTrainer(Trainer):
    """Hugging Face's own training step on given batches in their order; keeps each step's loss."""

    def get_train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=None, shuffle=False)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.detach())
        return loss


def trainer_losses(
    model: PeftModel,
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    *,
    learning_rate: float,
    folder: Path,
    use_cpu: bool,
    **recipe: Any,
) -> tuple[torch.Tensor, list[float]]:
    """Train `model` for one step a batch of input_ids and labels.

    Args:
        folder: for the Trainer's own files.
        recipe: of TrainingArguments, in place of a constant rate and PyTorch's AdamW.
    Returns:
        Each step's loss in nats, (n_steps,) on the CPU, and its gradient norm before clipping.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=use_cpu,
        max_steps=len(batches),
        learning_rate=learning_rate,
        **{"lr_scheduler_type": "constant", "optim": "adamw_torch"} | recipe,
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    dataset = [{"input_ids": input_ids, "labels": labels} for input_ids, labels in batches]
    trainer = RecordingTrainer(model=model, args=arguments, train_dataset=dataset)
    trainer.losses = []
    trainer.train()
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    return torch.stack(trainer.losses).cpu(), norms
