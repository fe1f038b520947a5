"""The adapter's dropout, whose mask is a function of counters and of no state: nothing is stored, all can be redrawn.

keep(seed, step, module, row, position, channel) is a chain of 32-bit integer mixers: a key for each token from the
first five, and one more mix with the channel for each element. The mixer is "lowbias32" (C. Wellons, Prospecting for
Hash Functions, 2018, https://nullprogram.com/blog/2018/07/31/): two multiplications, of the form of MurmurHash3's
finalizer (A. Appleby, 2011), with constants searched for the least bias between input and output bits.

Philox (Salmon et al. 2011, doi:10.1145/2063384.2063405), which Triton's `tl.rand` runs, would serve on a GPU as well.
Its ten rounds of 64-bit products cost some 60 operations of plain PyTorch for each element, this mixer ten: as
fast as torch.native_dropout on a CPU. Two keys in 2**32 may be equal, and two tokens then share their channels' mask.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from trainables.models.kernels import can_run_on

try:
    from trainables.models import mask_kernels
except ImportError:  # Triton comes with PyTorch for CUDA only
    mask_kernels = None

FIRST_KEY = 0x3C6EF372
"""Where the chain begins (the golden ratio's digits), so that all counters being 0 is nothing special."""
MULTIPLIERS = (0x7FEB352D, 0x846CA68B - 2**32)
"""Of lowbias32, as signed 32-bit numbers."""


def _int32(number: int) -> torch.Tensor:
    """A number as a tensor: PyTorch makes one of every number, and converts it, each time that it meets one."""
    return torch.tensor(number, dtype=torch.int32)


_FIRST, _SECOND = map(_int32, MULTIPLIERS)
_15, _LOW_17 = _int32(15), _int32(2**17 - 1)
_16, _LOW_16 = _int32(16), _int32(2**16 - 1)


def _scrambled_(x: torch.Tensor) -> torch.Tensor:
    """lowbias32 but for its last shift, in place; its high bits are mixed well already."""
    shifted = torch.bitwise_right_shift(x, _16).bitwise_and_(_LOW_16)  # int32 shifts its sign in
    x.bitwise_xor_(shifted).mul_(_FIRST)
    torch.bitwise_right_shift(x, _15, out=shifted).bitwise_and_(_LOW_17)
    return x.bitwise_xor_(shifted).mul_(_SECOND)


def mixed(x: torch.Tensor) -> torch.Tensor:
    """lowbias32 of each element; int32, taken as 32 unsigned bits."""
    x = _scrambled_(x.clone())
    return x.bitwise_xor_(torch.bitwise_right_shift(x, _16).bitwise_and_(_LOW_16))


@cache
def _of_channels(n_channels: int, device: torch.device) -> torch.Tensor:
    """What each channel adds to a token's hash, (n_channels,): the same in every mask."""
    return mixed(FIRST_KEY ^ torch.arange(n_channels, dtype=torch.int32, device=device))


def token_keys(seed: torch.Tensor, step: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """A key for each token of a step.

    Args:
        seed, step, rows, positions: int32, of shapes that broadcast. A row's number is its place in the trial's data
            order within the step, a position counts from the row's first token: neither depends on the layout.
    Returns:
        (tokens,), int32.
    """
    if mask_kernels and can_run_on(seed):
        return mask_kernels.token_keys(seed, step, rows, positions)
    key = mixed(FIRST_KEY ^ seed)
    for counter in (step, rows, positions):
        key = mixed(key ^ counter)
    return key.flatten()


def as_int32(number: int) -> int:
    """The signed 32-bit number with the bits of an unsigned one.

    >>> as_int32(2**32 - 1)
    -1
    """
    return number - 2**32 if number >= 2**31 else number


@dataclass(frozen=True, slots=True)
class Mask:
    """Which elements of one module's input dropout lets through.

    Attributes:
        keys: (tokens,), from `token_keys`.
        module: the module's number in its model.
        p: probability that an element is dropped.
    """

    keys: torch.Tensor
    module: int
    p: float

    @property
    def threshold(self) -> int:
        """An element is kept where its hash, a signed 32-bit number, is at least this."""
        return round(self.p * 2**32) - 2**31

    @property
    def scale(self) -> float:
        """Factor on what is kept, which leaves the mean as it is."""
        return 1 / (1 - self.p)

    def keep(self, n_channels: int) -> torch.Tensor:
        """(tokens, n_channels), True where an element is kept."""
        of_tokens = mixed(self.keys ^ self.module)
        hashes = _scrambled_(of_tokens[:, None] + _of_channels(n_channels, self.keys.device))
        return hashes >= self.threshold


def dropped(x: torch.Tensor, mask: Mask | None, keep: torch.Tensor | None = None) -> torch.Tensor:
    """dropout(x) of x (tokens, channels), rounded once to x's dtype; x itself without a mask.

    Args:
        keep: from `drawn_for` of a tensor of x's shape, where the mask is used more than once.
    Raises:
        RuntimeError: x has not the step's tokens.
    """
    if mask is None:
        return x
    if len(mask.keys) != len(x):
        raise RuntimeError(f"dropout has {len(mask.keys)} tokens in this step, a module's input {len(x)}")
    if mask_kernels and can_run_on(x):
        return mask_kernels.dropped(x, mask)
    return (x * (mask.keep(x.shape[1]) if keep is None else keep)).mul_(mask.scale)


def drawn_for(x: torch.Tensor, mask: Mask | None) -> torch.Tensor | None:
    """Which elements of x are kept, x's shape; None where kernels draw that on the way, or without a mask."""
    return None if mask is None or (mask_kernels and can_run_on(x)) else mask.keep(x.shape[1])


class DropoutMasks:
    """The masks of one trial, step after step.

    Seed and step are tensors on the device, so that each replay of a CUDA graph draws masks of its own.

    Attributes:
        seed: of the trial; int32 scalar.
        n_steps: steps begun and ended so far, those that float16 skipped too; int32 scalar.
    """

    def __init__(self, seed: int, device: torch.device | str) -> None:
        self.seed = torch.tensor(as_int32(seed), dtype=torch.int32, device=device)
        self.n_steps = torch.zeros((), dtype=torch.int32, device=device)
        self._keys: torch.Tensor | None = None

    def restart(self, seed: int) -> None:
        """Begin another trial."""
        self.seed.fill_(as_int32(seed))
        self.n_steps.zero_()

    @contextmanager
    def step(self, n_rows: int, length: int, *, rows: torch.Tensor | None = None) -> Iterator[None]:
        """Inside, forward and backward pass of a step over a batch of n_rows x length tokens draw the step's masks.

        Args:
            rows: (n_rows,) int32, number of each row; by default they count from 0.
        """
        device = self.seed.device
        if rows is None:
            rows = torch.arange(n_rows, dtype=torch.int32, device=device)
        with self.step_at(rows[:, None], torch.arange(length, dtype=torch.int32, device=device)):
            yield

    @contextmanager
    def step_at(self, rows: torch.Tensor, positions: torch.Tensor) -> Iterator[None]:
        """`step` over tokens that stand anywhere.

        Args:
            rows, positions: of the tokens, see `token_keys`.
        """
        self._keys = token_keys(self.seed, self.n_steps, rows, positions)
        try:
            yield
        finally:
            self._keys = None
        self.n_steps += 1

    def of(self, module: int, p: float) -> Mask:
        """The mask of a module in the current step."""
        if self._keys is None:
            raise RuntimeError("dropout needs a step: a model in training mode ran outside DropoutMasks.step")
        return Mask(self._keys, module, p)


class MaskedDropout(nn.Module):
    """torch.nn.Dropout on the input of an adapter, with the masks of a trial.

    Attributes:
        p: probability that an element is dropped.
    """

    def __init__(self, p: float, module: int, masks: DropoutMasks) -> None:
        """
        Args:
            module: number of the adapted module in its model.
        """
        super().__init__()
        self.p = p
        self._module, self._masks = module, masks

    def mask(self) -> Mask | None:
        """In the current step; None in evaluation."""
        return self._masks.of(self._module, self.p) if self.training else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., channels)."""
        mask = self.mask()
        return x if mask is None else _Dropout.apply(x, mask)


class _Dropout(torch.autograd.Function):
    """dropout(x) of x (..., channels), which keeps the mask's counters for the backward pass and not the mask."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mask: Mask) -> torch.Tensor:
        ctx.mask = mask
        return dropped(x.flatten(0, -2), mask).view_as(x)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        return dropped(upstream.flatten(0, -2), ctx.mask).view_as(upstream), None
