"""Cross-entropy of supervised tokens under a frozen head, from hidden states: all logits never exist at once.

Logits are made for supervised tokens only, a chunk at a time, and their gradient in the forward pass.
"""

from typing import Any

import torch
from torch.nn import functional as F

from trainables.data.tokens import IGNORE
from trainables.models.kernels import can_run_on
from trainables.values.config import LOSS_CHUNK_TOKENS

try:
    from trainables.models import loss_kernels
except ImportError:  # Triton comes with PyTorch for CUDA only
    loss_kernels = None

ALIGNMENT = 8
"""Fast GPU kernels need matrices whose rows are a multiple of so many elements; a vocabulary of 50,257 is none."""


def supervised(labels: torch.Tensor, *, multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions at which a loss is taken, and the token that each should predict.

    Args:
        labels: (batch, length) on the host, IGNORE where no loss is taken.
        multiple: the results' length is rounded up to it with positions 0 and targets IGNORE.
    Returns:
        positions in the flattened batch, and targets; both (n,), int64.
    """
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORE).flatten()  # the label that each position predicts
    positions = (following != IGNORE).nonzero().flatten()
    targets = following[positions]
    missing = -len(positions) % multiple
    return F.pad(positions, (0, missing)), F.pad(targets, (0, missing), value=IGNORE)


class ChunkedLoss(torch.autograd.Function):
    """Mean cross-entropy under a frozen head, its gradient made in the forward pass.

    With p = softmax(W h): loss = -log p[t], and d loss / d h = W^T (p - onehot(t)). Only one chunk of
    LOSS_CHUNK_TOKENS has its p in memory; the gradient is kept unscaled in float32, so that float16 loses none of it.
    """

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """states: (n, width); head: (vocabulary, width); targets: (n,), some may be IGNORE."""
        gradient = torch.empty_like(states, dtype=torch.float32)
        counts = targets != IGNORE
        total = torch.zeros((), device=states.device)
        for start in range(0, len(states), LOSS_CHUNK_TOKENS):
            chunk = slice(start, start + LOSS_CHUNK_TOKENS)
            losses, gradient[chunk] = _losses_and_gradient(states[chunk], head, targets[chunk].clamp(min=0)[:, None])
            total += (losses * counts[chunk]).sum()
        ctx.save_for_backward(gradient, counts)
        ctx.dtype = states.dtype
        return total / counts.sum()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient, counts = ctx.saved_tensors
        return (gradient * (upstream * counts / counts.sum())[:, None]).to(ctx.dtype), None, None


def aligned_logits(states: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Logits of states (n, width) under a head (vocabulary, width): (n, vocabulary rounded up to ALIGNMENT).

    The vocabulary is taken in two parts, the first a multiple of ALIGNMENT; logits beyond it are -inf.
    """
    n_words = len(head)
    n_whole = n_words - n_words % ALIGNMENT
    logits = states.new_empty(len(states), -(-n_words // ALIGNMENT) * ALIGNMENT)
    logits[:, n_words:] = -torch.inf
    torch.mm(states, head[:n_whole].T, out=logits[:, :n_whole])
    if n_whole < n_words:
        logits[:, n_whole:n_words] = states.mm(head[n_whole:].T)
    return logits


def _losses_and_gradient(
    states: torch.Tensor, head: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each token of one chunk, (chunk,), and its gradient to the states, (chunk, width)."""
    losses, p = _losses_and_error(aligned_logits(states, head), targets)
    n_words = len(head)
    n_whole = n_words - n_words % ALIGNMENT
    gradient = p[:, :n_whole].mm(head[:n_whole])
    return losses, gradient.addmm_(p[:, n_whole:n_words], head[n_whole:]) if n_whole < n_words else gradient


def _losses_and_error(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each row, and p - onehot(t) in the logits' dtype; the logits are used up."""
    if loss_kernels and can_run_on(logits):
        return loss_kernels.cross_entropy_(logits, targets), logits
    dtype = logits.dtype
    p = logits.float()
    del logits  # in 16 bits they are freed before the next copy is made
    p = p.log_softmax(dim=-1)
    losses = -p.gather(1, targets).flatten()
    return losses, p.exp_().scatter_add_(1, targets, torch.full_like(targets, -1, dtype=p.dtype)).to(dtype)
