"""peft's own forward, made to compute what the measurement protocol says: its products' dtype, its dropout's masks."""

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from trainables.models.core import core_of
from trainables.models.dropout_mask import DropoutMasks, MaskedDropout
from trainables.models.lean import adapted_layers

if TYPE_CHECKING:
    from peft import PeftModel


class AdapterProduct(nn.Module):
    """x -> x W^T with a float32 W, as torch.autocast computes it: both rounded to the compute dtype, sums in float32.

    Autocast itself would also turn the base's norms to float32, which the base need not pay for.

    Attributes:
        weight: A or B.
    """

    def __init__(self, weight: nn.Parameter, dtype: torch.dtype) -> None:
        """
        Args:
            dtype: to compute in.
        """
        super().__init__()
        self.weight = weight
        self._dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., inputs). Returns (..., outputs) in the compute dtype."""
        return F.linear(x.to(self._dtype), self.weight.to(self._dtype))


def follow_protocol(model: "PeftModel", masks: DropoutMasks) -> None:
    """Let a model's adapter take its dropout from `masks`, and compute its products in the dtype of the base.

    The number of an adapted module is its place among those of the model.
    """
    dtype = core_of(model).dtype
    for number, layer in enumerate(adapted_layers(model)):
        for name in layer.lora_A:
            dropout = layer.lora_dropout[name]
            if isinstance(dropout, nn.Dropout | MaskedDropout):
                layer.lora_dropout[name] = MaskedDropout(dropout.p, number, masks).train(dropout.training)
            if dtype == torch.float32:
                continue
            layer.lora_A[name] = AdapterProduct(layer.lora_A[name].weight, dtype)
            layer.lora_B[name] = AdapterProduct(layer.lora_B[name].weight, dtype)
