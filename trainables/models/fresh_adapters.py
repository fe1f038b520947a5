"""Fresh adapters on the host: the trials of one seed, rank and targets begin with the same, at either precision."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from trainables.models import lora
from trainables.values.config import TrialConfig
from trainables.values.last_used import LastUsed

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

Matrices = dict[str, torch.Tensor]


class FreshAdapters:
    """The matrices of fresh adapters, which peft takes long to draw beside what else a trial begins with."""

    def __init__(self, most: int) -> None:
        """
        Args:
            most: adapters that stay.
        """
        self._matrices = LastUsed[tuple[int, int, tuple[str, ...]], Matrices](most)

    def of(self, base: "PreTrainedModel", config: TrialConfig) -> Matrices:
        """A fresh adapter's matrices on the base's device, the caller's own.

        Raises:
            ConfigError: see trainables.models.lora.attach.
        """
        found = self._matrices.get(_key(config), lambda: _on_host(lora.fresh_matrices(base, config)))
        return {name: matrix.to(base.device, copy=True) for name, matrix in found.items()}

    def keep(self, config: TrialConfig, model: "PeftModel") -> None:
        """Let `of` have those of a fresh adapter that is attached already, before it is trained."""
        self._matrices.get(_key(config), lambda: _on_host(lora.matrices_of(model)))


def _key(config: TrialConfig) -> tuple[int, int, tuple[str, ...]]:
    """All that a fresh adapter depends on."""
    return config.seed, config.rank, config.targets


def _on_host(matrices: Mapping[str, torch.Tensor]) -> Matrices:
    return {name: matrix.detach().to("cpu", copy=True) for name, matrix in matrices.items()}
