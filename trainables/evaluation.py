"""What a tuned model does on held-out rows: loss, greedy text, pooled states.

Every length here is a constant of the measurement protocol, not of the trial.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from trainables.data import IGNORE, TokenRow, pad

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

EVAL_LENGTH_TOKENS = 512
"""Held-out rows keep their last so many tokens, or as many as the base has positions."""
N_DECODED_ROWS = 64
MAX_NEW_TOKENS = 64
BATCH_ROWS = 16


def eval_length(model: "PreTrainedModel | PeftModel") -> int:
    """Tokens of a held-out row that this base reads."""
    return min(EVAL_LENGTH_TOKENS, model.config.n_positions)


def _core(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel":
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _hidden(model: "PreTrainedModel | PeftModel", input_ids: torch.Tensor) -> torch.Tensor:
    """States after the final norm: (rows, length) -> (rows, length, width)."""
    return _core(model).transformer(input_ids=input_ids, use_cache=False).last_hidden_state


@torch.no_grad()
def eval_loss(model: "PreTrainedModel | PeftModel", rows: Sequence[TokenRow]) -> float:
    """Token-weighted mean cross-entropy over response and end tokens, in nats, float32."""
    core = _core(model).eval()
    total = torch.zeros((), dtype=torch.float64, device=core.device)
    n_tokens = 0
    by_length = sorted(rows, key=lambda row: len(row.input_ids))
    for start in range(0, len(rows), BATCH_ROWS):
        input_ids, labels = pad(
            by_length[start : start + BATCH_ROWS], max_length_tokens=eval_length(core), pad_id=core.config.eos_token_id
        )
        supervised = labels[:, 1:] != IGNORE
        n_tokens += int(supervised.sum())
        targets = labels[:, 1:][supervised].to(core.device)
        hidden = _hidden(core, input_ids.to(core.device))[:, :-1]
        logits = core.lm_head(hidden[supervised.to(core.device)]).float()  # (supervised, vocabulary)
        total += F.cross_entropy(logits, targets, reduction="sum").double()
    return float(total) / n_tokens


@torch.no_grad()
def greedy(model: "PreTrainedModel | PeftModel", rows: Sequence[TokenRow]) -> list[list[int]]:
    """Greedy continuation of each row's prompt: up to MAX_NEW_TOKENS tokens, end token included."""
    model.eval()
    end = model.config.eos_token_id
    prompts = _prompts(model, rows)
    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), end)
    mask = torch.zeros_like(input_ids)
    for i, prompt in enumerate(prompts):  # left-padded, so that all continue at the same column
        input_ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    device = model.device
    out = model.generate(
        input_ids=input_ids.to(device),
        attention_mask=mask.to(device),
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        pad_token_id=end,
        eos_token_id=end,
    )
    return [_until(end, tokens) for tokens in out[:, width:].tolist()]


def _prompts(model: "PreTrainedModel | PeftModel", rows: Sequence[TokenRow]) -> list[list[int]]:
    room = eval_length(model) - MAX_NEW_TOKENS
    return [list(row.input_ids[: row.n_prompt_tokens][-room:]) for row in rows]


def _until(end: int, tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


@torch.no_grad()
def pooled_states(
    model: "PreTrainedModel | PeftModel", rows: Sequence[TokenRow], texts: Sequence[Sequence[int]]
) -> NDArray[np.float32]:
    """Mean state after the final norm over the tokens of `texts`, each read after its row's prompt.

    Args:
        texts: one non-empty continuation a row.
    Returns:
        (len(rows), width).
    """
    model.eval()
    joined = [
        TokenRow(input_ids=tuple(prompt) + tuple(text), n_prompt_tokens=len(prompt))
        for prompt, text in zip(_prompts(model, rows), texts, strict=True)
    ]
    pooled = []
    for start in range(0, len(joined), BATCH_ROWS):
        input_ids, labels = pad(
            joined[start : start + BATCH_ROWS],
            max_length_tokens=eval_length(model),
            pad_id=model.config.eos_token_id,
        )
        weight = (labels != IGNORE).to(model.device).float()[..., None]  # (rows, length, 1)
        hidden = _hidden(model, input_ids.to(model.device)).float()
        pooled.append((hidden * weight).sum(dim=1) / weight.sum(dim=1))
    return torch.cat(pooled).cpu().numpy()
