"""Capturing work on the bare base as CUDA graphs: with which matrices, at which rank, and what a failure leaves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from trainables.models import lora
from trainables.models.lean import adapted_layers
from trainables.values.config import TrialConfig

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

RANKS = (16, 64)
"""A step graphs's rank: the first of these that is enough, or else the trial's own."""


class CaptureFailed(Exception):
    """Work could not be recorded; the reason."""


def padded_rank(rank: int) -> int:
    """The rank that work is recorded for where an adapter has this one."""
    return next((padded for padded in RANKS if padded >= rank), rank)


@contextmanager
def attached_matrices(
    base: "PreTrainedModel", config: TrialConfig, matrices: Mapping[str, torch.Tensor], scaling: torch.Tensor | float
) -> "Iterator[PeftModel]":
    """The base with an adapter of these very tensors, for recording; bare again afterwards."""
    model = lora.attach(base, config, base_name="graphs")
    try:
        for name, matrix in matrices.items():
            module, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module), leaf, matrix)
        for layer in adapted_layers(model):
            layer.scaling = dict.fromkeys(layer.scaling, scaling)
        yield model
    finally:
        lora.detach(model)


def abandon_capture() -> None:
    """Undo what a failed recording leaves: its stream is current, and the generator waits for its end."""
    torch.cuda.set_stream(torch.cuda.default_stream())
    fresh = torch.Generator(device="cuda")
    torch.cuda.default_generators[torch.cuda.current_device()].graphsafe_set_state(fresh.graphsafe_get_state())
