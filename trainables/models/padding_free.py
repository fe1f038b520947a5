"""Attention that needs no mask: of rows padded on the right, and of rows laid one after the other without padding.

transformers gives captured steps a mask, though eager ones none: it cannot look at positions while steps are captured.

Where rows lie one after the other all but attention works on real tokens alone. Attention goes row by row: in
FlashAttention's kernel for rows of any length where there is one; else its queries, keys and values are put where a
padded batch would have them, and its output is taken from there. Everything else in a decoder treats tokens one by one.
Losses and gradients are those of the padded batch up to rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from trainables.models.core import attention_by
from trainables.models.families import family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CAUSAL = (-1, 0)
"""Tokens that attention sees before and after a token's own: all, and none."""
GROUPED = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}
"""Keys may have fewer heads than queries; a PyTorch that has not the flag does not ask."""
ATTENTION = "padding_free"
"""Its name among transformers' attention functions. No mask function has that name, so models make no mask for it."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FlatRows:
    """Where the tokens of rows that lie one after the other stand.

    Attributes:
        length: of the padded batch that attention may be given: at least that of the longest row.
        starts: (n_rows + 1,) int32, the first token of each row, and the number of all.
        rows, positions: (n_tokens,) int32, each token's row and its position there.
        places: (n_tokens,) int64, each token's place in that padded batch, flattened.
    """

    length: int
    starts: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor

    @classmethod
    def of(cls, lengths: torch.Tensor, *, n_tokens: int, length: int) -> "FlatRows":
        """On the device of `lengths`, which nothing waits for.

        Args:
            lengths: (n_rows,) int64, tokens of each row.
            n_tokens: of all rows.
            length: see FlatRows.
        """
        ends = lengths.cumsum(0)
        rows = torch.repeat_interleave(lengths, output_size=n_tokens)
        positions = torch.arange(n_tokens, device=lengths.device) - (ends - lengths)[rows]
        return cls(
            length=length,
            starts=F.pad(ends, (1, 0)).int(),
            rows=rows.int(),
            positions=positions.int(),
            places=rows * length + positions,
        )

    @classmethod
    def on_host(cls, lengths: Sequence[int]) -> "FlatRows":
        """Of rows of so many tokens each, the longest of which says the padded batch's length."""
        return cls.of(torch.tensor(lengths), n_tokens=sum(lengths), length=max(lengths))

    def to(self, device: torch.device | str) -> "FlatRows":
        """The same on a device; what is there already is not copied."""
        there = {name: getattr(self, name).to(device) for name in ("starts", "rows", "positions", "places")}
        return replace(self, **there)

    @property
    def n_rows(self) -> int:
        return len(self.starts) - 1

    def taken(self, padded: torch.Tensor) -> torch.Tensor:
        """The rows' own elements of a padded batch: (n_rows, any width) -> (n_tokens,)."""
        return padded[:, : self.length].flatten()[self.places]

    def found(self, places: torch.Tensor, width: int) -> torch.Tensor:
        """Which tokens stand at places of a flattened padded batch of that width, none of them padding."""
        tokens = torch.zeros(self.n_rows * self.length, dtype=torch.int64)
        tokens[self.places] = torch.arange(len(self.places))
        return tokens[places // width * self.length + places % width]


def serves(core: "PreTrainedModel") -> bool:
    """Whether trials of a base read rows so, where that is fewer tokens: a family described here, with PyTorch's own
    attention."""
    return family_of(core.config.model_type) is not None and core.config._attn_implementation == "sdpa"


def needs_no_mask(core: "PreTrainedModel") -> bool:
    """Whether attention can do without a mask in padded rows too: the base `serves`, and no block has a window."""
    family = family_of(core.config.model_type)
    has_window = family is not None and family.windows != "none" and getattr(core.config, "sliding_window", None)
    return serves(core) and not has_window


@contextmanager
def padding_free(core: "PreTrainedModel") -> Iterator[None]:
    """Inside, forward and backward pass are of padded rows, or of flat ones, which the forward is given as `flat`.

    The backward pass too: a block of gradient checkpointing runs its forward pass again there. Rows are padded on the
    right, so that causal attention sees no padding.
    """
    with attention_by(core, ATTENTION):
        yield


def hidden_states(core: "PreTrainedModel", input_ids: torch.Tensor, flat: FlatRows | None = None) -> torch.Tensor:
    """States after the final norm: (tokens, width), one row after the other.

    Args:
        input_ids: (rows, length), or (tokens,) as `flat` says.
        flat: of rows that lie one after the other.
    """
    if flat is None:
        with padding_free(core) if needs_no_mask(core) else nullcontext():
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
    flat: FlatRows | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: query, key and value are (rows, heads, length, head_dim), or, of flat rows, (1, heads,
    tokens, head_dim)."""
    assert attention_mask is None  # no mask function has this attention's name
    mask, has_kernel = None, _has_kernel(query)
    if flat is not None:
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (tokens, heads, head_dim)
        if sliding_window is not None and sliding_window < flat.length:
            mask = _in_window(flat.length, sliding_window, query.device)
        elif has_kernel:
            limits, lengths = (flat.starts, flat.starts), (flat.length, flat.length)
            how = GROUPED | {"scale": kwargs.get("scaling"), "window_size": CAUSAL}
            return varlen_attn(query, key, value, *limits, *lengths, **how)[None], None
        query, key, value = (_padded(x, flat) for x in (query, key, value))
    if query.is_cuda and mask is None and not has_kernel:  # other kernels know no groups of heads
        key, value = (repeat_kv(x, query.shape[1] // x.shape[1]) for x in (key, value))
    read, _ = sdpa_attention_forward(module, query, key, value, mask, **kwargs)  # (rows, length, heads, head_dim)
    return read if flat is None else read.flatten(0, 1).index_select(0, flat.places)[None], None


def _in_window(length: int, window: int, device: torch.device) -> torch.Tensor:
    """Which tokens attention sees, (1, 1, length, length): the last `window` up to a token's own."""
    places = torch.arange(length, device=device)
    distance = places[:, None] - places
    return ((distance >= 0) & (distance < window))[None, None]


def _has_kernel(query: torch.Tensor) -> bool:
    """Whether FlashAttention 2 runs here: NVIDIA's Ampere and later, 16 bits, heads of at most 192 in steps of 8."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    head_dim = query.shape[-1]
    fits = head_dim % 8 == 0 and head_dim <= 192 and torch.cuda.get_device_capability(query.device) >= (8, 0)
    return fits and torch.backends.cuda.is_flash_attention_available()


def _padded(x: torch.Tensor, flat: FlatRows) -> torch.Tensor:
    """(tokens, heads, head_dim) -> (rows, heads, length, head_dim), 0 at padding."""
    padded = x.new_zeros(flat.n_rows * flat.length, *x.shape[1:]).index_copy(0, flat.places, x)
    return padded.unflatten(0, (flat.n_rows, flat.length)).transpose(1, 2)


AttentionInterface.register(ATTENTION, _attend)
