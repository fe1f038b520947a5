"""Loss, greedy text and pooled states, each against a plain loop over one row at a time."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from trainables import demo
from trainables.data.tokens import TokenRow
from trainables.evaluation import held_out
from trainables.evaluation.held_out import MAX_NEW_TOKENS
from trainables.models import base_model, lora
from trainables.models.families.gpt2 import TARGETS
from trainables.training.eager import EagerEngine
from trainables.values.config import TrialConfig

END = 0


def tuned_model(base, config, row: TokenRow):
    """The base under an adapter that says something: trained for two steps with dropout on."""
    model = lora.attach(base, config, base_name="tiny")
    ids = torch.tensor([row.input_ids])
    engine = EagerEngine(model, config, compute_dtype="float32", device="cpu")
    for _ in range(2):
        engine.step(ids, ids)
    return model


@pytest.fixture(scope="module", params=["16bit", "nf4"])
def model(request, workload, splits):
    config = TrialConfig(precision=request.param, rank=4, alpha=16, targets=TARGETS, dropout=0.3, learning_rate=1e-2)
    demo_base = base_model.load(replace(workload, base_folder=str(demo.FOLDER)), request.param, "cpu")
    return tuned_model(demo_base, config, splits["train"][0])


@pytest.fixture(scope="module")
def rows(splits):
    """More rows than one batch, one longer than the base has positions, one whose prompt leaves 16 of them."""
    long_response = TokenRow(input_ids=(*range(1, 300), END), n_prompt_tokens=40)
    long_prompt = TokenRow(input_ids=(*range(300, 600), 7, 8, END), n_prompt_tokens=240)
    return [*splits["validation"][:18], long_response, long_prompt]


@torch.no_grad()
def plain_logits(model, tokens) -> torch.Tensor:
    """(length, vocabulary) of one row, in evaluation mode and without a cache."""
    return model.eval()(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0].double()


def test_eval_loss_is_the_token_weighted_mean_of_a_plain_loop(model, rows):
    losses = []
    for row in rows:
        kept = row.first(256)
        log_probabilities = plain_logits(model, kept.input_ids).log_softmax(dim=-1)
        for position in range(max(1, kept.n_prompt_tokens), len(kept.input_ids)):
            losses.append(-float(log_probabilities[position - 1, kept.input_ids[position]]))
    assert held_out.eval_loss(model, rows) == pytest.approx(np.mean(losses), rel=1e-5)


def test_eval_loss_depends_neither_on_the_order_of_rows_nor_on_training_mode(model, rows):
    expected = held_out.eval_loss(model.eval(), rows)
    assert held_out.eval_loss(model.train(), list(reversed(rows))) == pytest.approx(expected, rel=1e-6)


def test_a_held_out_row_keeps_as_much_as_the_base_has_positions(model):
    assert held_out.eval_length(model) == held_out.eval_length(model.get_base_model()) == 256


def plain_greedy(model, prompt: list[int]) -> list[int]:
    """Argmax token by token until the end token; no cache, no padding."""
    text: list[int] = []
    while len(text) < min(MAX_NEW_TOKENS, 256 - len(prompt)) and END not in text:
        text.append(int(plain_logits(model, prompt + text)[-1].argmax()))
    return text


def test_greedy_is_argmax_token_by_token_to_the_end_token(model, rows):
    prompts = [list(row.input_ids[: row.n_prompt_tokens]) for row in rows]
    texts = held_out.greedy(model.train(), rows)
    assert texts == [plain_greedy(model, prompt) for prompt in prompts]
    ended = [text[-1] == END for text in texts]
    assert any(ended), "no text ended: the test shows too little"
    assert all(1 <= len(text) <= MAX_NEW_TOKENS and END not in text[:-1] for text in texts)


def test_pooled_states_are_the_mean_over_text_positions_of_a_plain_loop(model, rows):
    texts = [[5, 6, 7, END][: 1 + i % 4] for i in range(len(rows))]
    pooled = held_out.pooled_states(model.train(), rows, texts)
    assert pooled.shape == (len(rows), 128)
    for row, text, ours in zip(rows, texts, pooled, strict=True):
        prompt = list(row.input_ids[: row.n_prompt_tokens])
        with torch.no_grad():
            states = model.eval()(input_ids=torch.tensor([prompt + text]), output_hidden_states=True).hidden_states[-1]
        np.testing.assert_allclose(ours, states[0, len(prompt) :].mean(dim=0).numpy(), atol=2e-4)


def test_each_row_needs_a_text(model, rows):
    with pytest.raises(ValueError, match="shorter"):
        held_out.pooled_states(model, rows[:2], [[5]])


def test_evaluating_leaves_weights_and_gradients_alone(model, rows):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    held_out.eval_loss(model, rows[:3])
    held_out.pooled_states(model, rows[:3], held_out.greedy(model, rows[:3]))
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


def plain_rows(model, rows) -> list[tuple[torch.Tensor, list[int]]]:
    """For each row the logits that predict its response and end tokens, and these tokens."""
    found = []
    for row in rows:
        kept = list(row.input_ids)[:256]
        start = max(1, row.n_prompt_tokens)
        found.append((plain_logits(model, kept)[start - 1 : -1], kept[start:]))
    return found


def test_response_states_are_in_the_order_of_the_rows_and_have_a_token_each(model, rows):
    states = held_out.response_states(model.train(), rows)
    tokens = held_out.response_tokens(model, rows)
    expected = plain_rows(model, rows)
    assert tokens == [row_tokens for _, row_tokens in expected]
    assert [len(row) for row in tokens[-2:]] == [216, 16], "prompts are whole, responses lose their end"
    assert states.shape == (sum(map(len, tokens)), 128)
    logits = model.get_base_model().lm_head(states).detach().double()
    torch.testing.assert_close(logits, torch.cat([row_logits for row_logits, _ in expected]), atol=2e-3, rtol=1e-4)


def test_token_losses_are_those_of_a_plain_loop_and_sum_to_the_held_out_loss(model, rows):
    expected = [
        -torch.log_softmax(logits, dim=-1)[torch.arange(len(tokens)), tokens]
        for logits, tokens in plain_rows(model, rows)
    ] * 3
    rows = rows * 3
    tokens = [token for row in held_out.response_tokens(model, rows) for token in row]
    assert len(tokens) > held_out.HEAD_TOKENS, "more than one part: else the test shows too little"
    losses = held_out.token_losses(model, held_out.response_states(model, rows), tokens)
    np.testing.assert_allclose(losses, torch.cat(expected).numpy(), atol=2e-3)
    assert losses.mean() == pytest.approx(held_out.eval_loss(model, rows), rel=1e-6)


def test_divergence_is_that_of_a_plain_loop(model, rows):
    """The tuned model as reference, the same weights without the adapter as the other."""
    tuned = held_out.response_states(model, rows)
    tuned_logits = torch.cat([logits for logits, _ in plain_rows(model, rows)])
    with model.disable_adapter():
        bare = held_out.response_states(model, rows)
        bare_logits = torch.cat([logits for logits, _ in plain_rows(model, rows)])
    kl, same = held_out.divergence(model, bare, tuned)
    p, log_p, log_q = tuned_logits.softmax(-1), tuned_logits.log_softmax(-1), bare_logits.log_softmax(-1)
    np.testing.assert_allclose(kl, (p * (log_p - log_q)).sum(-1).numpy(), atol=2e-3, rtol=1e-2)
    agrees = (tuned_logits.argmax(-1) == bare_logits.argmax(-1)).numpy()
    assert np.mean(same == agrees) > 0.995, "but for ties within rounding"
    assert 0 < same.mean() < 1
    assert kl.min() >= 0
    assert kl.mean() > 0.01
    other_way, _ = held_out.divergence(model, tuned, bare)
    assert abs(other_way.mean() - kl.mean()) > 1e-4, "KL has a direction"


def test_a_model_does_not_diverge_from_itself(model, rows):
    states = held_out.response_states(model, rows[:4])
    kl, same = held_out.divergence(model, states, states)
    assert not kl.any()
    assert same.all()


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 700))
@example([5, 5], 10)
def test_rows_are_grouped_by_length_in_batches_of_at_most_so_many_tokens(lengths, n_tokens):
    groups = held_out.grouped_by_length(lengths, n_tokens)
    order = [i for group in groups for i in group]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths)
    for group in groups:
        assert len(group) <= 1 or len(group) * max(lengths[i] for i in group) <= n_tokens
    for group, following in pairwise(groups):
        grown = (len(group) + 1) * lengths[following[0]]
        assert grown > n_tokens, "another row would have found room"


def test_a_row_that_no_cache_has_cut_is_read_as_far_as_the_base_reads_it(model):
    """Cut within a later prompt it ends before that."""
    limit = held_out.eval_length(model)
    ids = tuple(1 + i % 90 for i in range(limit + 40))
    row = TokenRow(input_ids=ids, n_prompt_tokens=4, later_prompts=((limit - 6, limit + 10),))
    short = TokenRow(input_ids=ids[: limit - 6], n_prompt_tokens=4)
    assert held_out.eval_loss(model, [row]) == held_out.eval_loss(model, [short])
    assert len(held_out.response_states(model, [row])) == len(held_out.response_tokens(model, [row])[0])
