"""Attention of one new token a row over a static cache, whose rows are padded on the left.

On a GPU a kernel reads a row's own columns alone and writes the new key and value on the way. Where it cannot run, and
in transformers' own way, attention goes over all columns under a mask.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, StaticCache
from transformers.integrations.sdpa_attention import repeat_kv

from trainables.models.core import attention_by
from trainables.models.kernels import can_run_on

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

try:
    from trainables.models import decode_kernels
except ImportError:  # Triton comes with PyTorch for CUDA only
    decode_kernels = None

ATTENTION = "one_token"
"""Its name among transformers' attention functions. No mask function has that name, so models make no mask for it."""


class RowCache(StaticCache):
    """A static cache that can leave it to `_attend` to write a new token's key and value."""

    def __init__(self, config: "PretrainedConfig", n_columns: int) -> None:
        super().__init__(config=config, max_cache_len=n_columns)
        self._is_written_by_attention = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As transformers calls it; inside `written_by_attention` what it is given is given back."""
        if self._is_written_by_attention:
            return key_states, value_states
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    @contextmanager
    def written_by_attention(self) -> Iterator[None]:
        """Inside, the cache is read and written by `_attend` alone."""
        self._is_written_by_attention = True
        try:
            yield
        finally:
            self._is_written_by_attention = False


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Place:
    """Where one new token a row stands.

    Attributes:
        cache: of the tokens before it; it has read the prompts.
        starts: (rows,) int64, the first column of each row.
        at: (1,) int64, the column of the new tokens.
    """

    cache: RowCache
    starts: torch.Tensor
    at: torch.Tensor


def one_token_states(
    core: "PreTrainedModel", ids: torch.Tensor, position_ids: torch.Tensor, place: Place
) -> torch.Tensor:
    """States after the final norm, (rows, 1, width), of a model of a family described here; the cache holds the token
    then.

    Args:
        ids, position_ids: (rows, 1).
    """
    with attention_by(core, ATTENTION), place.cache.written_by_attention():
        read = core.base_model(
            input_ids=ids, position_ids=position_ids, past_key_values=place.cache, use_cache=True, place=place
        )
    return read.last_hidden_state


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    place: Place,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: query, key and value are (rows, heads, 1, head_dim)."""
    assert attention_mask is None  # no mask function has this attention's name
    layer = place.cache.layers[module.layer_idx]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    of_place = {"starts": place.starts, "at": place.at, "window": sliding_window, "scale": scale}
    attend = decode_kernels.attend if decode_kernels and can_run_on(query) else _attend_under_mask
    return attend(query, key, value, layer.keys, layer.values, **of_place), None


def _attend_under_mask(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    starts: torch.Tensor,
    at: torch.Tensor,
    window: int | None,
    scale: float,
) -> torch.Tensor:
    """As trainables.models.decode_kernels.attend, by PyTorch's own attention over all columns."""
    keys.index_copy_(2, at, key)
    values.index_copy_(2, at, value)
    columns = torch.arange(keys.shape[2], device=keys.device)
    seen = (columns >= starts[:, None]) & (columns <= at)
    if window is not None:
        seen &= columns > at - window
    keys, values = (repeat_kv(cached, query.shape[1] // cached.shape[1]) for cached in (keys, values))
    return F.scaled_dot_product_attention(query, keys, values, seen[:, None, None], scale=scale).transpose(1, 2)


AttentionInterface.register(ATTENTION, _attend)
