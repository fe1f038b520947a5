"""What logits say of the next token: the loss of a given one, and how far two models' distributions are apart."""

import torch
from torch.nn import functional as F

from trainables.models.kernels import can_run_on

try:
    from trainables.models import loss_kernels
except ImportError:  # Triton comes with PyTorch for CUDA only
    loss_kernels = None


def token_nats(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each target: logits (n, columns), targets (n,) -> (n,) float32."""
    if loss_kernels and can_run_on(logits):
        return loss_kernels.token_nats(logits, targets)
    return -_log_probabilities(logits).gather(1, targets[:, None]).flatten()


def divergence(ours: torch.Tensor, reference: torch.Tensor, n_words: int) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(reference || ours) of each row in nats, and whether both have the same most likely token.

    Args:
        ours, reference: logits, (n, columns), -inf beyond the vocabulary.
        n_words: of the vocabulary.
    Returns:
        (n,) float32, at least 0, and (n,) bool. Of equally likely tokens the first counts.
    """
    if loss_kernels and can_run_on(ours):
        kl, same_top1 = loss_kernels.divergence(ours, reference)
        return kl.clamp(min=0), same_top1
    log_a, log_b = _log_probabilities(ours), _log_probabilities(reference)
    same_top1 = log_a.argmax(dim=-1) == log_b.argmax(dim=-1)
    log_a[:, n_words:] = 0.0  # beyond the vocabulary: equal, so that they add nothing
    log_b[:, n_words:] = 0.0
    return F.kl_div(log_a, log_b, reduction="none", log_target=True).sum(dim=-1).clamp(min=0), same_top1


def _log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """(n, columns), float32."""
    return logits.log_softmax(dim=-1, dtype=torch.float32)
