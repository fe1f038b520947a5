"""Cross-entropy and its gradient from logits, in place of them: one Triton kernel that reads each logit twice."""

import torch
import triton
import triton.language as tl

COLUMNS = 4096
"""Of the vocabulary, taken at a time."""


@triton.jit
def _cross_entropy(losses, logits, targets, n_columns: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0)
    logits += row.to(tl.int64) * n_columns
    target = tl.load(targets + row)
    largest = tl.full((block,), -1e30, dtype=tl.float32)  # of every block-th logit
    total = tl.zeros((block,), dtype=tl.float32)
    for start in range(0, n_columns, block):
        i = start + tl.arange(0, block)
        value = tl.load(logits + i, mask=i < n_columns, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, value)
        total = total * tl.exp(largest - larger) + tl.exp(value - larger)
        largest = larger
    peak = tl.max(largest, axis=0)
    log_sum = peak + tl.log(tl.sum(total * tl.exp(largest - peak), axis=0))
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
    _cross_entropy[(len(logits),)](losses, logits, targets, logits.shape[1], block=COLUMNS, num_warps=8)
    return losses
