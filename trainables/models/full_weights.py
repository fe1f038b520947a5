"""Dequantized weights of 4-bit modules, kept beside the 4-bit ones where memory is ample.

A frozen weight is the same each time that it is dequantized: products with one that is kept have the same values but
for rounding, where bitsandbytes multiplies by few tokens without writing it out, and take less time. What is measured
has none: see `dequantizing`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import bitsandbytes
import torch
from torch.nn import functional as F

from trainables.models.lora_linear import KEPT, full_weight

MAX_ON_HOST_BYTES = 2**29
"""On a CPU, whose products take long beside their weights' dequantization unless a base is small."""


@torch.no_grad()
def keep_full_weights(base: torch.nn.Module, weights: Sequence[torch.Tensor] = ()) -> None:
    """Have the 4-bit modules of a base, if any, multiply by full weights from now on, in either pass.

    Args:
        weights: from `kept_weights` of the same base, where they were made before.
    Raises:
        torch.cuda.OutOfMemoryError: as it says; none are kept then.
    """
    modules = _quantized(base)
    try:
        for module, weight in zip(modules, weights or map(full_weight, modules), strict=True):
            setattr(module, KEPT, weight)
            module.forward = partial(_product, module)
    except torch.cuda.OutOfMemoryError:
        drop_full_weights(base)
        raise


def drop_full_weights(base: torch.nn.Module) -> None:
    """Have the 4-bit modules of a base dequantize again. Graphs that read what they kept must be gone."""
    for module in _keeping(base):
        _taken_from(module)


def full_bytes(base: torch.nn.Module) -> int:
    """What the full weights of all 4-bit modules take; 0 where there are none."""
    states = [module.weight.quant_state for module in _quantized(base)]
    return sum(state.shape.numel() * state.dtype.itemsize for state in states)


def have_room(base: torch.nn.Module) -> bool:
    """Whether the device of a base has room for its full weights: on a GPU, where half of its memory is free beside
    them and a base at 16 bits, which may be there already or not."""
    n_bytes = full_bytes(base)
    if base.device.type == "cpu":
        return n_bytes <= MAX_ON_HOST_BYTES
    free, total = torch.cuda.mem_get_info()
    return 2 * (free - 2 * n_bytes) > total


def kept_weights(model: torch.nn.Module) -> list[torch.Tensor]:
    """The full weights that a model's modules multiply by; none where they dequantize. A graph that reads them must go
    before they do."""
    return [vars(module)[KEPT] for module in _keeping(model)]


@contextmanager
def dequantizing(model: torch.nn.Module) -> Iterator[None]:
    """Inside, no full weights are kept: each product dequantizes, in the time and memory that this takes."""
    kept = [(module, _taken_from(module)) for module in _keeping(model)]
    try:
        yield
    finally:
        for module, own in kept:
            vars(module).update(own)


@contextmanager
def keeping(base: torch.nn.Module, weights: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Inside, the 4-bit modules of a base multiply by full weights, even if it keeps none; they are given.

    Args:
        weights: see `keep_full_weights`.
    """
    if own := kept_weights(base):
        yield own
        return
    keep_full_weights(base, weights)
    try:
        yield kept_weights(base)
    finally:
        drop_full_weights(base)


def _taken_from(module: torch.nn.Module) -> dict[str, object]:
    """What a module keeps, which it has no more."""
    return {name: vars(module).pop(name) for name in ("forward", KEPT) if name in vars(module)}


def _quantized(model: torch.nn.Module) -> list[bitsandbytes.nn.Linear4bit]:
    """Not peft's layers over them, which show their base layer's weight as their own."""
    return [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]


def _keeping(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for module in model.modules() if KEPT in vars(module)]


def _product(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """W x + bias, in x's dtype and as bitsandbytes' own forward: summed in the weight's."""
    weight = vars(module)[KEPT]
    bias = None if module.bias is None else module.bias.to(weight.dtype)
    return F.linear(x.to(weight.dtype), weight, bias).to(x.dtype)
