"""Adapters that are not without effect, untrained."""

from typing import TYPE_CHECKING

import torch

from trainables.models import lora
from trainables.values.config import TrialConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STANDARD_DEVIATION = 0.05
"""Of B's values, which a fresh adapter has at 0."""


def drawn_files(base: "PreTrainedModel", config: TrialConfig) -> dict[str, bytes]:
    """An adapter's files, see trainables.models.lora.to_files; the base is bare before and afterwards."""
    model, generator = lora.attach(base, config, base_name="drawn"), torch.Generator(base.device)
    generator.manual_seed(config.seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, STANDARD_DEVIATION, generator=generator)
    files = lora.to_files(config, lora.matrices_of(model), base_name="drawn")
    lora.detach(model)
    return files
