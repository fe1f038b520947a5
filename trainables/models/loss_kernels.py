"""Cross-entropy from logits, its gradient in place of them, and the divergence of two models: each one Triton kernel.

Each logit is read once, or twice, a block of the vocabulary at a time; nothing as large as the logits is written but
the gradient.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl

COLUMNS = 4096
"""Of the vocabulary, taken at a time."""
OPTIONS = {"block": COLUMNS, "num_warps": 8}


@triton.jit
def _log_sum(logits, n_columns: tl.constexpr, block: tl.constexpr):
    """The logarithm of the sum of the exponentials of a row's logits, and the first column of the largest."""
    largest = tl.full((block,), -1e30, dtype=tl.float32)  # of every block-th logit
    total = tl.zeros((block,), dtype=tl.float32)
    at = tl.zeros((block,), dtype=tl.int32)
    for start in range(0, n_columns, block):
        i = start + tl.arange(0, block)
        value = tl.load(logits + i, mask=i < n_columns, other=float("-inf")).to(tl.float32)
        at = tl.where(value > largest, i, at)
        larger = tl.maximum(largest, value)
        total = total * tl.exp(largest - larger) + tl.exp(value - larger)
        largest = larger
    peak = tl.max(largest, axis=0)
    first = tl.min(tl.where(largest == peak, at, n_columns), axis=0)
    return peak + tl.log(tl.sum(total * tl.exp(largest - peak), axis=0)), first


@triton.jit
def _token_nats(losses, logits, targets, n_columns: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0)
    logits += row.to(tl.int64) * n_columns
    log_sum, _ = _log_sum(logits, n_columns, block)
    tl.store(losses + row, log_sum - tl.load(logits + tl.load(targets + row)).to(tl.float32))


def token_nats(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """See trainables.models.next_token.token_nats; logits are contiguous."""
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    _token_nats[(len(logits),)](losses, logits, targets, logits.shape[1], **OPTIONS)
    return losses


@triton.jit
def _divergence(kl, same, ours, reference, n_columns: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0)
    ours += row.to(tl.int64) * n_columns
    reference += row.to(tl.int64) * n_columns
    log_sum_a, first_a = _log_sum(ours, n_columns, block)
    log_sum_b, first_b = _log_sum(reference, n_columns, block)
    total = tl.zeros((block,), dtype=tl.float32)
    for start in range(0, n_columns, block):
        i = start + tl.arange(0, block)
        log_a = tl.load(ours + i, mask=i < n_columns, other=float("-inf")).to(tl.float32) - log_sum_a
        log_b = tl.load(reference + i, mask=i < n_columns, other=float("-inf")).to(tl.float32) - log_sum_b
        total += tl.where(log_b == float("-inf"), 0.0, tl.exp(log_b) * (log_b - log_a))
    tl.store(kl + row, tl.sum(total, axis=0))
    tl.store(same + row, first_a == first_b)


def divergence(ours: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See trainables.models.next_token.divergence, but for rounding below 0; logits are contiguous."""
    kl = torch.empty(len(ours), dtype=torch.float32, device=ours.device)
    same = torch.empty(len(ours), dtype=torch.bool, device=ours.device)
    _divergence[(len(ours),)](kl, same, ours, reference, ours.shape[1], **OPTIONS)
    return kl, same


@triton.jit
def _cross_entropy(losses, logits, targets, n_columns: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0)
    logits += row.to(tl.int64) * n_columns
    target = tl.load(targets + row)
    log_sum, _ = _log_sum(logits, n_columns, block)
    tl.store(losses + row, log_sum - tl.load(logits + target).to(tl.float32))
    tl.debug_barrier()  # the target's logit is read before its place is written
    for start in range(0, n_columns, block):
        i = start + tl.arange(0, block)
        value = tl.load(logits + i, mask=i < n_columns, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(value - log_sum) - tl.where(i == target, 1.0, 0.0)
        tl.store(logits + i, gradient.to(logits.dtype.element_ty), mask=i < n_columns)


def cross_entropy_(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Loss of each row, (n,) float32; afterwards `logits` holds softmax - onehot, the loss's gradient to them.

    Args:
        logits: (n, n_columns), contiguous; columns beyond the vocabulary are -inf.
        targets: (n,), column of each row's token.
    """
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    _cross_entropy[(len(logits),)](losses, logits, targets, logits.shape[1], **OPTIONS)
    return losses


def compilations(dtype: torch.dtype, n_columns: int) -> Iterator[Callable[[], object]]:
    """What compiles these kernels for logits of a dtype.

    Args:
        n_columns: of the logits, see trainables.models.chunked_loss.aligned_logits.
    """
    of_tokens, of_kernel = (torch.float32, dtype, torch.int64, n_columns), {"grid": (1,)} | OPTIONS
    yield partial(_cross_entropy.warmup, *of_tokens, **of_kernel)
    yield partial(_token_nats.warmup, *of_tokens, **of_kernel)
    yield partial(_divergence.warmup, torch.float32, torch.bool, dtype, dtype, n_columns, **of_kernel)
