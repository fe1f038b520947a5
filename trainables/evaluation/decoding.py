"""Greedy decoding of many prompts at once: a static KV cache, and on a GPU one CUDA graph replayed for each token."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import StaticCache

from trainables.capture.capture import captured
from trainables.models.base_model import core_of
from trainables.models.chunked_loss import aligned_logits
from trainables.models.lean import lean_modules

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

MASK_MULTIPLE = 16
"""The mask's number of columns is a multiple of this: attention would copy any other mask in every layer."""


class GreedyDecoder:
    """Static KV cache and buffers for greedy decoding of a fixed set of prompts, by one base at a time.

    Prompts are padded on the left, so that all continue at the same column; padding is never attended to. `first`
    decodes the first token of every continuation and `next` each further one; both can be captured as CUDA graphs, as
    their tensors stay where they are.
    """

    def __init__(self, base: "PreTrainedModel", prompts: Sequence[Sequence[int]], *, n_new: int, end: int) -> None:
        """
        Args:
            base: whose config the cache is made for, on whose device.
            prompts: tokens of each prompt, at least one each.
            n_new: tokens of a continuation, the end token included.
            end: the end token.
        """
        self._width, self._end = max(map(len, prompts)), end
        input_ids = torch.full((len(prompts), self._width), end)
        for row, prompt in zip(input_ids, prompts, strict=True):
            row[self._width - len(prompt) :] = torch.tensor(prompt)
        self._input_ids = input_ids.to(base.device)  # (prompts, width)
        self._n_padding = torch.tensor([[self._width - len(prompt)] for prompt in prompts]).to(base.device)
        n_columns = -(-(self._width + n_new) // MASK_MULTIPLE) * MASK_MULTIPLE
        self._columns = torch.arange(n_columns, device=base.device)
        self._cache = StaticCache(config=base.config, max_cache_len=n_columns)
        self._at = self._columns[self._width : self._width + 1].clone()  # (1,), column of the token to read next
        self._tokens = self._input_ids.new_zeros(len(prompts), n_new)

    @torch.no_grad()
    def first(self, base: "PreTrainedModel") -> None:
        """Read the prompts; sets the first token of each continuation."""
        self._cache.reset()
        self._at.fill_(self._width)
        self._tokens[:, :1] = self._following(base, self._input_ids, self._columns[: self._width])

    @torch.no_grad()
    def next(self, base: "PreTrainedModel") -> None:
        """Read the last token of each continuation; sets the one after it."""
        place = self._at - self._width  # (1,)
        token = self._tokens.index_select(1, place)
        self._tokens.index_copy_(1, place + 1, self._following(base, token, self._at))
        self._at.add_(1)

    def _following(self, base: "PreTrainedModel", ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Read ids (prompts, n) at the columns `at` (n,); returns what follows them, (prompts, 1)."""
        seen = (self._columns >= self._n_padding)[:, None] & (self._columns <= at[:, None])  # (prompts, n, columns)
        seen = seen | (self._columns == at[:, None])  # padding sees itself: a row of nothing would be NaN
        mask = torch.zeros_like(seen, dtype=base.dtype).masked_fill_(~seen, -torch.inf)
        states = base.base_model(
            input_ids=ids,
            attention_mask=mask[:, None],
            position_ids=(at - self._n_padding).clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return aligned_logits(states[:, -1], base.get_output_embeddings().weight).argmax(dim=-1, keepdim=True)

    @property
    def ended(self) -> bool:
        """Whether each continuation has its end token by now; waits for the device, so it cannot be captured."""
        n_tokens = int(self._at) - self._width + 1
        return bool((self._tokens[:, :n_tokens] == self._end).any(dim=1).all())

    def texts(self) -> list[list[int]]:
        """The continuations, each up to its first end token, that included."""
        return [_up_to(self._end, text) for text in self._tokens.tolist()]


def greedy_texts(
    model: "PreTrainedModel | PeftModel", prompts: Sequence[Sequence[int]], *, n_new: int, end: int
) -> list[list[int]]:
    """Continue each prompt by its most likely tokens: up to `n_new` of them, `end` included.

    Args:
        model: the base, with an adapter or without.
    """
    core = core_of(model)
    decoder = GreedyDecoder(core, prompts, n_new=n_new, end=end)
    with lean_modules(model):
        decoder.first(core)
        if core.device.type == "cuda" and n_new > 2:
            decoder.next(core)  # libraries allocate their workspaces at first use, before the capture
            graph = captured(lambda: decoder.next(core))
            for _ in range(n_new - 2):
                graph.replay()
        else:
            for _ in range(n_new - 1):
                if decoder.ended:
                    break
                decoder.next(core)
    return decoder.texts()


def _up_to(end: int, tokens: list[int]) -> list[int]:
    """The tokens until the first `end`, that included; all of them where there is none."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens
