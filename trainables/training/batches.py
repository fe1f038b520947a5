"""What the steps of a trial read: padded batches in an order drawn from its seed, and their form for captured steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from trainables.data.tokens import TokenRow, fitted, pad
from trainables.models.chunked_loss import supervised
from trainables.values.config import LOSS_CHUNK_TOKENS, Loop, TrialConfig

MULTIPLE_TOKENS = 64
"""Lengths are rounded up to a multiple of this so that few shapes (graphs) occur; standard + eager trials do not round.
"""


class Batch(NamedTuple):
    """Padded rows on the host.

    Attributes:
        input_ids, labels: (rows, length), int64; labels are IGNORE where no loss is taken.
        lengths: tokens of each row; empty where none is padded.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """Sizes that the CUDA graph of a training step is captured for.

    Attributes:
        n_rows, length: of the padded batch.
        n_targets: places for supervised tokens in the lean loop, which need not all be used; 0 in the standard loop.
    """

    n_rows: int
    length: int
    n_targets: int = 0

    @property
    def n_tokens(self) -> int:
        """Of the batch, padding included."""
        return self.n_rows * self.length


GraphInput = tuple[StepShape, torch.Tensor]
"""A batch as the one vector that a captured step reads, (n,) int64 on the host: its tokens, then the labels (standard
loop) or the positions and the targets of supervised tokens (lean loop)."""


def full_batch(config: TrialConfig, n_words: int) -> Batch:
    """The largest batch that a trial may meet, random tokens that are all supervised: cost is measured on it."""
    shape = (config.batch_size, config.max_length_tokens)
    ids = torch.randint(n_words, shape, generator=torch.Generator().manual_seed(0))
    return Batch(ids, ids)


def packed(batch: Batch, loop: Loop) -> GraphInput:
    """A batch for a captured step; places for supervised tokens are rounded up to whole chunks of the loss."""
    input_ids, labels, *_ = batch
    n_rows, length = input_ids.shape
    if loop == "standard":
        return StepShape(n_rows=n_rows, length=length), torch.cat([input_ids.flatten(), labels.flatten()])
    positions, targets = supervised(labels, multiple=LOSS_CHUNK_TOKENS)
    shape = StepShape(n_rows=n_rows, length=length, n_targets=len(positions))
    return shape, torch.cat([input_ids.flatten(), positions, targets])


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """All that the batches of a trial depend on beside the rows; most trials of a sweep have the same plan.

    Attributes:
        seed: of the order of rows.
        n_steps: batches in all.
        batch_size: rows of each.
        max_length_tokens: rows are cut there, see trainables.data.tokens.fitted.
        multiple: lengths are rounded up to it.
    """

    seed: int
    n_steps: int
    batch_size: int
    max_length_tokens: int
    multiple: int

    @classmethod
    def of(cls, config: TrialConfig) -> "BatchPlan":
        """The plan of a trial; the same for its baseline."""
        stock = (config.loop, config.engine) == ("standard", "eager")
        return cls(
            seed=config.seed,
            n_steps=config.max_steps,
            batch_size=config.batch_size,
            max_length_tokens=config.max_length_tokens,
            multiple=1 if stock else MULTIPLE_TOKENS,
        )


class Batches:
    """The batches of a plan.

    Attributes:
        batches: one an optimizer step, for an EagerEngine.
    """

    def __init__(self, plan: BatchPlan, rows: Sequence[TokenRow], *, pad_id: int) -> None:
        """Each pass visits all rows in an order drawn from the seed.

        Args:
            rows: of the training split; those that the plan's length leaves too little of are passed over.
            pad_id: token that fills up shorter rows.
        """
        rows = fitted(rows, plan.max_length_tokens)
        generator = torch.Generator().manual_seed(plan.seed)
        order: list[int] = []
        self.batches: list[Batch] = []
        for _ in range(plan.n_steps):
            while len(order) < plan.batch_size:
                order += torch.randperm(len(rows), generator=generator).tolist()
            batch, order = order[: plan.batch_size], order[plan.batch_size :]
            chosen = [rows[i] for i in batch]
            padded = pad(chosen, max_length_tokens=plan.max_length_tokens, pad_id=pad_id, multiple=plan.multiple)
            self.batches.append(Batch(*padded, tuple(len(row.input_ids) for row in chosen)))
        self._packed: dict[Loop, list[GraphInput]] = {}

    def packed(self, loop: Loop) -> list[GraphInput]:
        """The same batches for a GraphEngine, see `packed`; made once for each loop."""
        if loop not in self._packed:
            self._packed[loop] = [packed(batch, loop) for batch in self.batches]
        return self._packed[loop]
