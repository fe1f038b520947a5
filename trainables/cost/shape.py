"""The sizes of a dense decoder, from which memory and time are predicted: no weights, no PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Role = Literal["qkv", "attention output", "mlp input", "mlp output"]
"""Where in a block a linear module stands: it reads the first norm, attention, the second norm, or the activation."""
GROUPS: Mapping[str, tuple[Role, ...]] = {
    "qkv": ("qkv",),
    "attention": ("qkv", "attention output"),
    "mlp": ("mlp input", "mlp output"),
    "all-linear": ("qkv", "attention output", "mlp input", "mlp output"),
}
"""Targets that are named together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A linear module of a block.

    Attributes:
        name: as a target names it.
        inputs, outputs: features.
        bias: whether it has one, which is never quantized.
    """

    name: str
    role: Role
    inputs: int
    outputs: int
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a decoder of equal blocks: attention, then a multilayer perceptron, each behind a norm.

    Attributes:
        n_layer: blocks.
        hidden_size: width of the residual stream.
        n_head, n_kv_head: heads of the queries, and of keys and values (fewer: Ainslie et al. 2023, arXiv:2305.13245).
        head_dim: features of a head; not always hidden_size / n_head.
        vocab_size: rows of the embedding, and of the head.
        context_tokens: the longest row.
        linears: the linear modules of a block, in the order of a forward pass.
        gated: the MLP is output(act(gate(x)) * up(x)) with an activation of one kernel; else output(act(input(x)))
            with GPT-2's gelu_new, which PyTorch computes in several.
        tied_head: the head is the embedding.
        n_positions: rows of learned positions; 0 where positions are rotary (Su et al. 2021, arXiv:2104.09864).
        layer_norm: norms are LayerNorm with a bias; else RMSNorm, computed in float32.
        n_block_norms: norms of width hidden_size in a block; of 4, two stand behind attention and MLP (Gemma).
        head_norms: queries and keys have a norm over head_dim.
        n_rotary: blocks that rotate their queries and keys.
        sliding_window, n_sliding: tokens that a query looks back in so many of the blocks; 0 where there is no window.

    Raises:
        ValueError: a size is no whole number of at least 1, or the heads do not share keys evenly.
    """

    n_layer: int
    hidden_size: int
    n_head: int
    n_kv_head: int
    head_dim: int
    vocab_size: int
    context_tokens: int
    linears: tuple[Linear, ...]
    gated: bool = True
    tied_head: bool = False
    n_positions: int = 0
    layer_norm: bool = False
    n_block_norms: int = 2
    head_norms: bool = False
    n_rotary: int = 0
    sliding_window: int = 0
    n_sliding: int = 0

    def __post_init__(self) -> None:
        for name in ("n_layer", "hidden_size", "n_head", "n_kv_head", "head_dim", "vocab_size", "context_tokens"):
            _check(name, getattr(self, name))
        for linear in self.linears:
            _check(f"inputs of {linear.name}", linear.inputs)
            _check(f"outputs of {linear.name}", linear.outputs)
        if self.n_head % self.n_kv_head:
            raise ValueError(f"{self.n_head} heads cannot share {self.n_kv_head} key heads evenly")

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Linear modules of a block by name: (inputs, outputs), in the order of a forward pass."""
        return {linear.name: (linear.inputs, linear.outputs) for linear in self.linears}

    @property
    def query_size(self) -> int:
        """Features of all queries of a token."""
        return self.n_head * self.head_dim

    @property
    def kv_size(self) -> int:
        """Features of all keys of a token, and of all values."""
        return self.n_kv_head * self.head_dim

    @property
    def mlp_size(self) -> int:
        """Features that the activation of the MLP gives."""
        return next(linear.inputs for linear in self.linears if linear.role == "mlp output")

    @property
    def n_linear_weights(self) -> int:
        """Elements of the blocks' linear weights: what 4 bits quantize."""
        return self.n_layer * sum(linear.inputs * linear.outputs for linear in self.linears)

    @property
    def n_embedding_weights(self) -> int:
        """Elements of embeddings, learned positions and an untied head."""
        rows = self.vocab_size * (1 if self.tied_head else 2) + self.n_positions
        return rows * self.hidden_size

    @property
    def n_small_weights(self) -> int:
        """Elements of norms and biases."""
        biases = sum(linear.outputs for linear in self.linears if linear.bias)
        heads = 2 * self.head_dim if self.head_norms else 0
        a_norm = self.hidden_size * (2 if self.layer_norm else 1)
        return self.n_layer * (biases + self.n_block_norms * a_norm + heads) + a_norm

    @property
    def n_weights(self) -> int:
        """Elements of all weights, a tied head counted once."""
        return self.n_linear_weights + self.n_embedding_weights + self.n_small_weights

    def group(self, name: str) -> tuple[str, ...]:
        """Names of the modules in one of GROUPS."""
        return tuple(linear.name for linear in self.linears if linear.role in GROUPS[name])


def head_dim_of(hidden_size: int, n_head: int) -> int:
    """Features of a head where heads share the residual stream evenly.

    Raises:
        ValueError: they cannot.
    """
    _check("hidden_size", hidden_size)
    _check("n_head", n_head)
    if hidden_size % n_head:
        raise ValueError(f"a hidden_size of {hidden_size} is no multiple of {n_head} heads")
    return hidden_size // n_head


def _check(name: str, size: object) -> None:
    if type(size) is not int or size < 1:
        raise ValueError(f"{name} is {size!r}")
