"""Rows laid one after the other in place of a padded batch: all but attention then works on real tokens alone.

Attention goes row by row: its queries, keys and values are put where a padded batch would have them, and its output is
taken from there. Everything else in a decoder treats tokens one by one. Losses and gradients are those of the padded
batch up to rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trainables.models.families import family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "padding_free"
"""Its name among transformers' attention functions. No mask function has that name, so models make no mask for it."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FlatRows:
    """Where the tokens of rows that lie one after the other stand.

    Attributes:
        n_rows, length: of the batch that attention sees, padded to the longest row.
        rows, positions: (n_tokens,) int32, each token's row and its position there.
        places: (n_tokens,) int64, each token's place in that batch, flattened.
    """

    n_rows: int
    length: int
    rows: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "FlatRows":
        """On the host, of rows of so many tokens each."""
        n_tokens, length = torch.tensor(lengths), max(lengths)
        rows = torch.repeat_interleave(n_tokens)
        positions = torch.arange(len(rows)) - (n_tokens.cumsum(0) - n_tokens)[rows]
        return cls(
            n_rows=len(lengths),
            length=length,
            rows=rows.int(),
            positions=positions.int(),
            places=rows * length + positions,
        )

    def taken(self, padded: torch.Tensor) -> torch.Tensor:
        """The rows' own elements of a padded batch: (n_rows, any width) -> (n_tokens,)."""
        return padded[:, : self.length].flatten()[self.places]

    def found(self, places: torch.Tensor, width: int) -> torch.Tensor:
        """Which tokens stand at places of a flattened padded batch of that width, none of them padding."""
        tokens = torch.zeros(self.n_rows * self.length, dtype=torch.int64)
        tokens[self.places] = torch.arange(len(self.places))
        return tokens[places // width * self.length + places % width]


def serves(core: "PreTrainedModel") -> bool:
    """Whether a base can read rows so: a family described here, on a CPU, with PyTorch's own attention."""
    is_known = family_of(core.config.model_type) is not None
    return is_known and core.device.type == "cpu" and core.config._attn_implementation == "sdpa"


@contextmanager
def padding_free(core: "PreTrainedModel") -> Iterator[None]:
    """Inside, forward and backward pass of a model are of flat rows, which its forward is given as `flat`.

    The backward pass too: a block of gradient checkpointing runs its forward pass again there.
    """
    stock = core.config._attn_implementation
    core.config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        core.config._attn_implementation = stock


def hidden_states(core: "PreTrainedModel", input_ids: torch.Tensor, flat: FlatRows | None = None) -> torch.Tensor:
    """States after the final norm: (tokens, width), one row after the other.

    Args:
        input_ids: (rows, length), or (tokens,) as `flat` says.
        flat: of rows that lie one after the other.
    """
    if flat is None:
        return core.base_model(input_ids=input_ids, use_cache=False).last_hidden_state.flatten(0, 1)
    with padding_free(core):
        positions = flat.positions.long()[None]
        read = core.base_model(input_ids=input_ids[None], position_ids=positions, use_cache=False, flat=flat)
        return read.last_hidden_state[0]


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    flat: FlatRows,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: query, key and value are (1, heads, tokens, head_dim)."""
    query, key, value = (_padded(x[0].transpose(0, 1), flat) for x in (query, key, value))
    mask = None
    if sliding_window is not None and sliding_window < flat.length:
        places = torch.arange(flat.length, device=query.device)
        distance = places[:, None] - places
        mask = ((distance >= 0) & (distance < sliding_window))[None, None]
    read, _ = sdpa_attention_forward(module, query, key, value, mask, **kwargs)  # (rows, length, heads, head_dim)
    return read.flatten(0, 1).index_select(0, flat.places)[None], None


def _padded(x: torch.Tensor, flat: FlatRows) -> torch.Tensor:
    """(tokens, heads, head_dim) -> (rows, heads, length, head_dim), 0 at padding."""
    padded = x.new_zeros(flat.n_rows * flat.length, *x.shape[1:]).index_copy(0, flat.places, x)
    return padded.unflatten(0, (flat.n_rows, flat.length)).transpose(1, 2)


AttentionInterface.register(ATTENTION, _attend)
