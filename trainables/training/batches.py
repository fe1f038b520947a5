"""What the steps of a trial read: batches drawn from its seed, as tensors or packed for captured steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainables.data import tokens
from trainables.models.lean import LOSS_CHUNK_TOKENS, supervised
from trainables.values.config import Loop, TrialConfig

MULTIPLE_TOKENS = 64
"""But in a stock script's steps, batches are as long as their longest row rounded up to it: captured steps are few."""

Batch = tuple[torch.Tensor, torch.Tensor]
"""input_ids and labels on the host, both (rows, length), int64; labels are IGNORE where no loss is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """Sizes of one recorded step: rows, their length, and in the lean loop places for supervised tokens."""

    n_rows: int
    length: int
    n_targets: int = 0

    @property
    def n_tokens(self) -> int:
        return self.n_rows * self.length


GraphInput = tuple[StepShape, torch.Tensor]
"""A batch as the one vector that a recorded step reads, (n,) int64 on the host: its tokens, then labels or positions
and targets."""


def packed(batch: Batch, loop: str) -> GraphInput:
    """A batch for a recorded step; places for supervised tokens are rounded up to whole chunks."""
    input_ids, labels = batch
    found = supervised(labels, multiple=LOSS_CHUNK_TOKENS) if loop == "lean" else (labels.flatten(),)
    n_targets = len(found[0]) if loop == "lean" else 0
    shape = StepShape(n_rows=len(input_ids), length=input_ids.shape[1], n_targets=n_targets)
    return shape, torch.cat([input_ids.flatten(), *found])


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """All that batches depend on, given the rows; a trial, its baseline and most other trials of a sweep have the same."""

    seed: int
    n_steps: int
    batch_size: int
    max_length_tokens: int
    multiple: int

    @classmethod
    def of(cls, config: TrialConfig) -> "BatchPlan":
        stock = (config.loop, config.engine) == ("standard", "eager")
        return cls(
            seed=config.seed,
            n_steps=config.max_steps,
            batch_size=config.batch_size,
            max_length_tokens=config.max_length_tokens,
            multiple=1 if stock else MULTIPLE_TOKENS,
        )


class Batches:
    """The batches of a draw, one a step."""

    def __init__(self, draw: BatchPlan, rows: Sequence[tokens.TokenRow], *, pad_id: int) -> None:
        """Each pass visits all rows in an order drawn from the seed."""
        generator = torch.Generator().manual_seed(draw.seed)
        order: list[int] = []
        self.batches: list[Batch] = []
        for _ in range(draw.n_steps):
            while len(order) < draw.batch_size:
                order += torch.randperm(len(rows), generator=generator).tolist()
            batch, order = order[: draw.batch_size], order[draw.batch_size :]
            self.batches.append(
                tokens.pad(
                    [rows[i] for i in batch],
                    max_length_tokens=draw.max_length_tokens,
                    pad_id=pad_id,
                    multiple=draw.multiple,
                )
            )
        self._packed: dict[Loop, list[GraphInput]] = {}

    def packed(self, loop: Loop) -> list[GraphInput]:
        """The same for captured steps."""
        if loop not in self._packed:
            self._packed[loop] = [packed(batch, loop) for batch in self.batches]
        return self._packed[loop]
