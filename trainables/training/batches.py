"""What the steps of a trial read: padded batches in an order drawn from its seed, and their form for captured steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from trainables.data.tokens import TokenRow, fitted, pad
from trainables.models.chunked_loss import supervised
from trainables.models.padding_free import FlatRows
from trainables.values.config import LOSS_CHUNK_TOKENS, Loop, TrialConfig

MULTIPLE_TOKENS = 64
"""Lengths are rounded up to a multiple of this so that few shapes (graphs) occur; standard + eager trials do not round.
"""
FLAT_MULTIPLE = 128
"""Likewise the tokens of all rows that lie one after the other in a captured step."""
MOST_OF_FULL = 0.7
"""Of the tokens of a full batch, whose peak of memory is a trial's: rows lie one after the other up to so many, with
which a step needs no more than that, though attention may have a padded copy of queries, keys and values."""


class Batch(NamedTuple):
    """Padded rows on the host.

    Attributes:
        input_ids, labels: (rows, length), int64; labels are IGNORE where no loss is taken.
        lengths: tokens of each row, where the lean loop is to lay them one after the other; else empty.
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
        n_flat: tokens of rows that lie one after the other, each at most `length` long; 0 where rows are padded.
    """

    n_rows: int
    length: int
    n_targets: int = 0
    n_flat: int = 0

    @property
    def n_tokens(self) -> int:
        """Of the batch, padding included."""
        return self.n_flat or self.n_rows * self.length

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the parts of a GraphInput's vector, of which the lean loop has four and the standard loop three."""
        n_lengths = self.n_rows if self.n_flat else 0
        return (self.n_tokens, n_lengths, *((self.n_targets, self.n_targets) if self.n_targets else (self.n_tokens,)))


GraphInput = tuple[StepShape, torch.Tensor]
"""A batch as the one vector that a captured step reads, (n,) int64 on the host: its tokens, the lengths of rows that
lie one after the other, then the labels (standard loop) or the positions and the targets of supervised tokens (lean
loop)."""


def full_batch(config: TrialConfig, n_words: int) -> Batch:
    """The largest batch that a trial may meet, random tokens that are all supervised: cost is measured on it."""
    shape = (config.batch_size, config.max_length_tokens)
    ids = torch.randint(n_words, shape, generator=torch.Generator().manual_seed(0))
    return Batch(ids, ids)


def packed(batch: Batch, loop: Loop, *, longest: int = 0) -> GraphInput:
    """A batch for a captured step; places for supervised tokens are rounded up to whole chunks of the loss.

    Args:
        longest: tokens of the longest row that any batch may have: graphs of rows that lie one after the other, which
            differ in nothing else, are shared over all of them. At least this batch's own.
    """
    input_ids, labels, lengths = batch
    n_rows, length = input_ids.shape
    if loop == "standard":
        return StepShape(n_rows=n_rows, length=length), torch.cat([input_ids.flatten(), labels.flatten()])
    positions, targets = supervised(labels, multiple=LOSS_CHUNK_TOKENS)
    shape = StepShape(n_rows=n_rows, length=length, n_targets=len(positions))
    n_flat = -(-sum(lengths) // FLAT_MULTIPLE) * FLAT_MULTIPLE
    if not 0 < n_flat < shape.n_tokens:
        return shape, torch.cat([input_ids.flatten(), positions, targets])
    filled = _lengthened(lengths, length, n_flat)
    flat = FlatRows.of(filled, n_tokens=n_flat, length=length)
    positions = flat.found(positions, length)
    shape = replace(shape, length=max(longest, length), n_flat=n_flat)
    return shape, torch.cat([flat.taken(input_ids), filled, positions, targets])


def unpacked(shape: StepShape, inputs: torch.Tensor) -> tuple[torch.Tensor, FlatRows | None, tuple[torch.Tensor, ...]]:
    """The parts of a packed batch, on its device; nothing waits for that.

    Returns:
        Tokens, (rows, length) or flat; where they stand if they are flat; labels of the tokens' shape (standard loop),
        or positions and targets (lean loop).
    """
    ids, lengths, *wanted = inputs.split(shape.sizes)
    if shape.n_flat:
        return ids, FlatRows.of(lengths, n_tokens=shape.n_flat, length=shape.length), tuple(wanted)
    batch = (shape.n_rows, shape.length)
    return ids.view(batch), None, tuple(wanted) if shape.n_targets else (wanted[0].view(batch),)


def _lengthened(lengths: Sequence[int], most: int, n_tokens: int) -> torch.Tensor:
    """Rows with some of their padding, at most `most` tokens each and `n_tokens` in all: causal attention sees none."""
    filled, missing = list(lengths), n_tokens - sum(lengths)
    for row, own in enumerate(lengths):
        filled[row] = min(own + missing, most)
        missing -= filled[row] - own
    return torch.tensor(filled)


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

    def __init__(self, plan: BatchPlan, rows: Sequence[TokenRow], *, pad_id: int, lie_flat: bool) -> None:
        """Each pass visits all rows in an order drawn from the seed.

        Args:
            rows: of the training split; those that the plan's length leaves too little of are passed over.
            pad_id: token that fills up shorter rows.
            lie_flat: rows are to lie one after the other where that is fewer tokens and has room, see
                trainables.models.padding_free.serves.
        """
        rows = fitted(rows, plan.max_length_tokens)
        n_most = MOST_OF_FULL * plan.batch_size * plan.max_length_tokens if lie_flat else 0
        generator = torch.Generator().manual_seed(plan.seed)
        order: list[int] = []
        self.batches: list[Batch] = []
        for _ in range(plan.n_steps):
            while len(order) < plan.batch_size:
                order += torch.randperm(len(rows), generator=generator).tolist()
            batch, order = order[: plan.batch_size], order[plan.batch_size :]
            chosen = [rows[i] for i in batch]
            ids, labels = pad(chosen, max_length_tokens=plan.max_length_tokens, pad_id=pad_id, multiple=plan.multiple)
            lengths = tuple(len(row.input_ids) for row in chosen)
            is_flat = sum(lengths) < ids.numel() and sum(lengths) <= n_most
            self.batches.append(Batch(ids, labels, lengths if is_flat else ()))
        self._longest = plan.max_length_tokens
        self._packed: dict[Loop, list[GraphInput]] = {}

    def packed(self, loop: Loop) -> list[GraphInput]:
        """The same batches for a GraphEngine, see `packed`; made once for each loop."""
        if loop not in self._packed:
            self._packed[loop] = [packed(batch, loop, longest=self._longest) for batch in self.batches]
        return self._packed[loop]
