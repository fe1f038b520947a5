"""Greedy decoding of many prompts at once: a static KV cache, and on a GPU one CUDA graph replayed for each token."""

import copy
from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig

from trainables.capture.capture import captured
from trainables.models.architecture import context_of
from trainables.models.cached_attention import Place, RowCache, one_token_states
from trainables.models.core import core_of
from trainables.models.families import family_of, family_of_model
from trainables.models.head import logits_of
from trainables.models.lean import lean_modules

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

MASK_MULTIPLE = 16
"""The mask's number of columns is a multiple of this: attention would copy any other mask in every layer."""


class GreedyDecoder:
    """Static KV cache and buffers for greedy decoding of a fixed number of prompts, by one base at a time.

    Prompts are padded on the left, so that all continue at the same column; padding is never attended to. `first`
    decodes the first token of every continuation and `next` each further one; both can be captured as CUDA graphs, as
    their tensors stay where they are.

    A continuation ends where its prompt leaves the base no further position; the others go on.

    Every layer keeps all columns; one whose attention sees a window only, as its family says, is given a mask of its
    own.
    """

    def __init__(
        self, base: "PreTrainedModel", prompts: Sequence[Sequence[int]], *, n_new: int, ends: Sequence[int]
    ) -> None:
        """
        Args:
            base: whose config the cache is made for, on whose device.
            prompts: see `set_prompts`; none that is decoded later may be longer than the longest of them.
            n_new: tokens of a continuation, the end token included.
            ends: the end tokens; the first of them fills up the prompts.
        """
        self._width, self._ends = max(map(len, prompts)), frozenset(ends)
        self._n_positions = context_of(base.config)
        self._windows = family_of_model(base).windows
        self._n_new, self._pad = n_new, next(iter(ends), 0)
        ids = torch.zeros(len(prompts), self._width, dtype=torch.int64, device=base.device)
        self._input_ids, self._n_padding = ids, torch.zeros_like(ids[:, :1])  # (prompts, width), (prompts, 1)
        self.set_prompts(prompts)
        n_columns = -(-(self._width + n_new) // MASK_MULTIPLE) * MASK_MULTIPLE
        self._columns = torch.arange(n_columns, device=base.device)
        self._cache = RowCache(_without_windows(base.config), n_columns)
        self._at = self._columns[self._width : self._width + 1].clone()  # (1,), column of the token to read next
        self._tokens = self._input_ids.new_zeros(len(prompts), n_new)

    def set_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        """Decode these from now on.

        Args:
            prompts: tokens of each, at least one each; as many prompts as before.
        """
        self._limits = [_limit(self._n_positions, prompt, self._n_new) for prompt in prompts]
        ids = torch.full(self._input_ids.shape, self._pad)
        for row, prompt in zip(ids, prompts, strict=True):
            row[self._width - len(prompt) :] = torch.tensor(prompt)
        self._input_ids.copy_(ids)
        self._n_padding.copy_(torch.tensor([[self._width - len(prompt)] for prompt in prompts]))

    @torch.no_grad()
    def first(self, base: "PreTrainedModel") -> None:
        """Read the prompts; sets the first token of each continuation."""
        self._cache.reset()
        self._at.fill_(self._width)
        self._tokens[:, :1] = _following(base, self._states(base, self._input_ids, self._columns[: self._width]))

    @torch.no_grad()
    def next(self, base: "PreTrainedModel") -> None:
        """Read the last token of each continuation; sets the one after it."""
        place = self._at - self._width  # (1,)
        token = self._tokens.index_select(1, place)
        of_tokens = Place(cache=self._cache, starts=self._n_padding[:, 0], at=self._at)
        states = one_token_states(base, token, self._positions(self._at), of_tokens)
        self._tokens.index_copy_(1, place + 1, _following(base, states))
        self._at.add_(1)

    def _positions(self, at: torch.Tensor) -> torch.Tensor:
        """Positions of the columns `at` (n,) in each prompt, (prompts, n)."""
        return (at - self._n_padding).clamp(0, self._n_positions - 1)

    def _states(self, base: "PreTrainedModel", ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Read ids (prompts, n) at the columns `at` (n,); returns their states, (prompts, n, width)."""
        seen = (self._columns >= self._n_padding)[:, None] & (self._columns <= at[:, None])  # (prompts, n, columns)
        seen = seen | (self._columns == at[:, None])  # padding sees itself: a row of nothing would be NaN
        return base.base_model(
            input_ids=ids,
            attention_mask=self._masks(base, seen, at),
            position_ids=self._positions(at),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state

    def _masks(
        self, base: "PreTrainedModel", seen: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """What is added to attention's scores, (prompts, 1, n, columns); by kind of layer where a config lists them."""

        def added(visible: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(visible, dtype=base.dtype).masked_fill_(~visible, -torch.inf)[:, None]

        if self._windows == "none":
            return added(seen)
        window = base.config.sliding_window
        in_window = seen if window is None else seen & (self._columns > at[:, None] - window)
        if self._windows == "every block":
            return added(in_window)
        return {"full_attention": added(seen), "sliding_attention": added(in_window)}

    @property
    def ended(self) -> bool:
        """Whether each continuation has its end token by now; waits for the device, so it cannot be captured."""
        n_tokens = int(self._at) - self._width + 1
        for text, limit in zip(self._tokens[:, :n_tokens].tolist(), self._limits, strict=True):
            if n_tokens < limit and not self._ends.intersection(text):
                return False
        return True

    def texts(self) -> list[list[int]]:
        """The continuations, each up to its first end token, that included, or to its limit."""
        limited = zip(self._tokens.tolist(), self._limits, strict=True)
        return [_up_to(self._ends, text[:limit]) for text, limit in limited]


def greedy_texts(
    model: "PreTrainedModel | PeftModel", prompts: Sequence[Sequence[int]], *, n_new: int, ends: Sequence[int]
) -> list[list[int]]:
    """Continue each prompt by its most likely tokens: up to `n_new` of them, the first of `ends` included.

    Prompts are read whole; one that leaves fewer than `n_new` positions of the base is continued to the last of them.

    Args:
        model: the base, with an adapter or without.
        prompts: each shorter than the base has positions.
    """
    core = core_of(model)
    if family_of(core.config.model_type) is None:
        return _generated(core, prompts, n_new=n_new, ends=ends)
    decoder = GreedyDecoder(core, prompts, n_new=n_new, ends=ends)
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


@torch.no_grad()
def _generated(
    core: "PreTrainedModel", prompts: Sequence[Sequence[int]], *, n_new: int, ends: Sequence[int]
) -> list[list[int]]:
    """The same by transformers' own greedy search, for a base of no family here.

    Prompts that may go on for equally long are read together, padded on the left and masked; one at a time by a base
    that is not told its tokens' positions, or whose state is no cache that could be masked.
    """
    is_alone = core._is_stateful or "position_ids" not in signature(core.forward).parameters
    groups: dict[tuple[int, int], list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault((_limit(context_of(core.config), prompt, n_new), i if is_alone else 0), []).append(i)
    texts: dict[int, list[int]] = {}
    for (limit, _), group in groups.items():
        width = max(len(prompts[i]) for i in group)
        ids, mask = torch.zeros(2, len(group), width, dtype=torch.int64)
        for row, i in enumerate(group):
            ids[row, width - len(prompts[i]) :] = torch.tensor(list(prompts[i]))
            mask[row, width - len(prompts[i]) :] = 1
        settings = GenerationConfig(
            max_new_tokens=limit, do_sample=False, eos_token_id=list(ends) or None, pad_token_id=0
        )
        found = core.generate(ids.to(core.device), attention_mask=mask.to(core.device), generation_config=settings)
        for i, tokens in zip(group, found[:, width:].tolist(), strict=True):
            texts[i] = _up_to(frozenset(ends), tokens)
    return [texts[i] for i in range(len(prompts))]


def _following(base: "PreTrainedModel", states: torch.Tensor) -> torch.Tensor:
    """The most likely token after the last of the states (prompts, n, width): (prompts, 1)."""
    return logits_of(base, states[:, -1]).argmax(dim=-1, keepdim=True)


def _limit(n_positions: int, prompt: Sequence[int], n_new: int) -> int:
    """Tokens of a continuation at most."""
    return min(n_new, n_positions - len(prompt))


def _without_windows(config: "PretrainedConfig") -> "PretrainedConfig":
    """A base's config whose layers all attend to every column."""
    config = copy.deepcopy(config)
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window = None
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = ["full_attention"] * config.num_hidden_layers
    return config


def _up_to(ends: frozenset[int], tokens: list[int]) -> list[int]:
    """The tokens until the first of `ends`, that included; all of them where there is none."""
    n_tokens = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:n_tokens]
