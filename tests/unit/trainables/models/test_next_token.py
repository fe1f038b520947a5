"""What logits say of the next token, against the definitions in float64."""

import pytest
import torch

from trainables.models.next_token import divergence, token_nats

N_ROWS = 40


def drawn(n_words: int, seed: int) -> torch.Tensor:
    """Logits with columns beyond the vocabulary, up to a multiple of 8."""
    logits = torch.full((N_ROWS, -(-n_words // 8) * 8), -torch.inf)
    logits[:, :n_words] = 4 * torch.randn(N_ROWS, n_words, generator=torch.Generator().manual_seed(seed))
    return logits


@pytest.mark.parametrize("n_words", [7, 1001, 1024])
def test_a_tokens_loss_is_its_negative_log_probability(n_words):
    logits = drawn(n_words, 0)
    targets = torch.randint(n_words, (N_ROWS,), generator=torch.Generator().manual_seed(1))
    expected = -logits[:, :n_words].double().log_softmax(dim=-1)[torch.arange(N_ROWS), targets]
    torch.testing.assert_close(token_nats(logits, targets).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_words", [7, 1001, 1024])
def test_the_divergence_is_kl_over_the_vocabulary_and_never_below_0(n_words):
    ours, reference = drawn(n_words, 0), drawn(n_words, 1)
    ours[: N_ROWS // 2] = reference[: N_ROWS // 2] + 1e-4 * drawn(n_words, 2)[: N_ROWS // 2]
    ours[:, n_words:] = -torch.inf
    log_a, log_b = (logits[:, :n_words].double().log_softmax(dim=-1) for logits in (ours, reference))
    kl, same_top1 = divergence(ours, reference, n_words)
    torch.testing.assert_close(kl.double(), (log_b.exp() * (log_b - log_a)).sum(dim=-1), rtol=1e-4, atol=1e-5)
    assert float(kl.min()) >= 0
    assert torch.equal(same_top1, log_a.argmax(dim=-1) == log_b.argmax(dim=-1))
    assert 0 < int(same_top1.sum()) < N_ROWS


def test_of_equally_likely_tokens_the_first_counts():
    ours, reference = torch.zeros(3, 8), torch.zeros(3, 8)
    ours[:, [2, 5]], reference[:, [2, 6]] = 3.0, 3.0
    reference[2, 1] = 3.0
    _, same_top1 = divergence(ours, reference, 8)
    assert same_top1.tolist() == [True, True, False]
