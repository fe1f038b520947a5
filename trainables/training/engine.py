"""Engine: what trial.py asks of whatever trains an adapter; and what the engines share."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from trainables.evaluation.held_out import EvalBatches
from trainables.models.dropout_mask import DropoutMasks
from trainables.models.padding_free import needs_no_mask, padding_free
from trainables.values.checkpoint import EngineState

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

MAX_GRAD_NORM = 1.0


class Engine(Protocol):
    """Trains the adapter of one trial: AdamW on its matrices alone, gradient clipping, float16 with loss scaling.

    All engines take the same steps and can go on from each other's state. To add one: a class with these members, a
    name in trainables.values.config.EngineName, a branch in trainables.trial, and an entry in the contract's tests.

    Attributes:
        parameters: the trial's own matrices, in the order in which peft attaches them; up to date after each `run`.
    """

    parameters: list[torch.Tensor]

    @property
    def n_bad_gradients(self) -> torch.Tensor:
        """Steps so far whose gradient norm was not finite; an int64 scalar on the device."""

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by before the backward pass; 1 unless the arithmetic is float16."""

    def run(self, steps: Sequence[Any]) -> torch.Tensor:
        """Do one optimizer step for each element of `steps`.

        Args:
            steps: batches in the engine's own form: Batch for the eager engine, GraphInput for the graph engine.
        Returns:
            (len(steps),), the mean training loss in nats of each, on the device; nothing waits for it.
        """

    def eval_loss(self, rows: EvalBatches) -> float:
        """Token-weighted mean loss in nats over held-out rows, with the adapter as it is now."""

    def state(self) -> EngineState:
        """Where training stands, on the host; any engine of the same config can go on from it."""

    def restore(self, state: EngineState) -> None:
        """Go on from what `state` of an engine of the same config gave.

        Raises:
            ValueError: it is of an adapter of another size.
        """


def standard_loss(model: "PeftModel", input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean loss from the logits of every position, as a stock training script takes it; all on the model's device."""
    logits = model(input_ids=input_ids, use_cache=False).logits.float()  # (batch, length, vocabulary)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@contextmanager
def standard_step(base: "PreTrainedModel", masks: DropoutMasks, batch: tuple[int, int]) -> Iterator[None]:
    """Inside, a captured step of the standard loop draws its dropout and gives attention no mask where it needs none:
    as in an eager step, of which transformers sees that it needs none.

    Args:
        batch: rows and length.
    """
    with padding_free(base) if needs_no_mask(base) else nullcontext(), masks.step(*batch):
        yield


def flattened(tensors: Sequence[torch.Tensor]) -> NDArray[np.float32]:
    """The elements of all tensors as one float32 vector on the host.

    It is NumPy's own memory: no device memory is taken, and no tensor is kept alive by it.
    """
    host = np.empty(sum(tensor.numel() for tensor in tensors), dtype=np.float32)
    for part, tensor in zip(parts_of(torch.from_numpy(host), tensors), tensors, strict=True):
        part.copy_(tensor.detach())
    return host


@torch.no_grad()
def unflatten(vector: NDArray[np.float32], tensors: Sequence[torch.Tensor]) -> None:
    """Inverse of `flattened`: copy a flat vector into existing tensors.

    Raises:
        ValueError: the vector's length is not the tensors' number of elements.
    """
    n_values = sum(tensor.numel() for tensor in tensors)
    if vector.shape != (n_values,):
        raise ValueError(f"the checkpoint has {vector.size} values, the adapter {n_values}")
    for part, tensor in zip(parts_of(torch.tensor(vector), tensors), tensors, strict=True):
        tensor.copy_(part)


def scaling_of(scaler: torch.amp.GradScaler | None) -> dict[str, float | int]:
    """The fields of EngineState that describe float16's loss scaling; empty where the loss is not scaled."""
    if scaler is None or not scaler.is_enabled():
        return {}
    state = scaler.state_dict()
    return {"loss_scale": float(state["scale"]), "n_good_steps": int(state["_growth_tracker"])}


def set_scaling(scaler: torch.amp.GradScaler | None, state: EngineState) -> None:
    """Inverse of `scaling_of`; nothing where the loss is not scaled."""
    if scaler is not None and scaler.is_enabled():
        scaling = {"scale": state.loss_scale, "_growth_tracker": state.n_good_steps}
        scaler.load_state_dict(scaler.state_dict() | scaling)


def joined(matrices: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Parameter, dict[str, torch.nn.Parameter]]:
    """Matrices copied one after the other into one vector, and parameters of their names that are its parts.

    An optimizer's kernels take one long tensor in a fraction of the time of a hundred short ones.
    """
    whole = torch.cat([matrix.detach().flatten() for matrix in matrices.values()])
    parts = parts_of(whole, list(matrices.values()))
    return torch.nn.Parameter(whole), dict(zip(matrices, map(torch.nn.Parameter, parts), strict=True))


def parts_of(vector: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """A vector's parts, in the shapes of these tensors, as views."""
    sizes = [tensor.numel() for tensor in like]
    return [part.view(tensor.shape) for part, tensor in zip(vector.split(sizes), like, strict=True)]
