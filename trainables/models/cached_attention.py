"""Attention of one new token a row over a static cache, without a mask.

Rows are padded on the left. transformers' own way gives each of them all columns of the cache and a mask; a kernel
reads a row's own columns and writes the new key and value on the way. The same formula in plain PyTorch gains nothing:
it is what shows, without a GPU, that models can be read so.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, StaticCache

from trainables.models.core import attention_by
from trainables.models.kernels import can_run_on
from trainables.models.padding_free import serves

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


def has_kernel(core: "PreTrainedModel", ids: torch.Tensor) -> bool:
    """Whether the kernel serves a model on the device of its input."""
    return decode_kernels is not None and can_run_on(ids) and serves(core)


def one_token_states(
    core: "PreTrainedModel", ids: torch.Tensor, position_ids: torch.Tensor, place: Place
) -> torch.Tensor:
    """States after the final norm, (rows, 1, width), of a model that padding_free `serves`; the cache holds the token
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
    attend = decode_kernels.attend if decode_kernels and can_run_on(query) else attend_plainly
    return attend(query, key, value, layer.keys, layer.values, **of_place), None


def attend_plainly(
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
    """See trainables.models.decode_kernels.attend."""
    keys.index_copy_(2, at, key)
    values.index_copy_(2, at, value)
    columns = torch.arange(keys.shape[2], device=keys.device)
    seen = (columns >= starts[:, None]) & (columns <= at)
    if window is not None:
        seen &= columns > at - window
    group = query.shape[1] // keys.shape[1]
    of_heads = [cached.float().repeat_interleave(group, dim=1) for cached in (keys, values)]
    scores = scale * query.float() @ of_heads[0].transpose(-1, -2)
    shares = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(dim=-1)
    return (shares @ of_heads[1]).transpose(1, 2).to(query.dtype)


AttentionInterface.register(ATTENTION, _attend)
