"""Greedy text of many prompts at once: a static cache, and on a GPU one CUDA graph a token."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from trainables.lean import lean_modules

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@torch.no_grad()
def greedy_texts(
    model: "PreTrainedModel | PeftModel", prompts: Sequence[Sequence[int]], *, n_new: int, end: int
) -> list[list[int]]:
    """Continue each prompt by its most likely tokens: up to `n_new` of them, `end` included.

    Prompts are padded on the left, so that all continue at the same column; padding is never attended to.
    """
    from transformers import StaticCache

    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    device, width = core.device, max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), end)
    for row, prompt in zip(input_ids, prompts, strict=True):
        row[width - len(prompt) :] = torch.tensor(prompt)
    n_padding = torch.tensor([[width - len(prompt)] for prompt in prompts]).to(device)  # (prompts, 1)
    columns = torch.arange(width + n_new, device=device)
    cache = StaticCache(config=core.config, max_cache_len=width + n_new)

    def next_tokens(ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Read ids (prompts, n) at the columns `at` (n,); returns what follows them, (prompts, 1)."""
        seen = (columns >= n_padding)[:, None] & (columns <= at[:, None])  # (prompts, n, columns)
        seen = seen | (columns == at[:, None])  # padding sees itself: a row of nothing would be NaN
        states = core.transformer(
            input_ids=ids,
            attention_mask=seen[:, None],
            position_ids=(at - n_padding).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return core.lm_head(states[:, -1:]).argmax(dim=-1)

    with lean_modules(model):
        token = next_tokens(input_ids.to(device), columns[:width])
        texts = _continued(next_tokens, token, columns[width : width + 1], n_new)
    return [_until(end, text) for text in texts.tolist()]


def _continued(
    next_tokens: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], first: torch.Tensor, at: torch.Tensor, n_new: int
) -> torch.Tensor:
    """`n_new` tokens of each prompt, (prompts, n_new), from the first of them."""
    token, at, start = first.clone(), at.clone(), at.clone()
    texts = first.new_zeros(len(first), n_new)
    texts[:, :1] = first

    def step() -> None:
        token.copy_(next_tokens(token, at))
        at.add_(1)
        texts.index_copy_(1, at - start, token)

    if first.device.type == "cuda" and n_new > 2:
        step()  # what libraries allocate at first use must not be recorded
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        for _ in range(n_new - 2):
            graph.replay()
    else:
        for _ in range(n_new - 1):
            step()
    return texts


def _until(end: int, tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens
