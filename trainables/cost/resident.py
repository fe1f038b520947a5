"""Bytes that stay on the device from step to step, counted exactly: weights, constants, adapter, moments."""

import re
from collections import Counter
from collections.abc import Mapping

from trainables.cost.allocator import unsplit_bytes
from trainables.cost.recipe import WIDTH, Recipe
from trainables.cost.shape import Linear, Shape

BLOCK_SIZE = 64
"""Weights that share one scale in NF4."""
SCALES_PER_SCALE = 256
"""Double quantization: so many 8-bit scales share one 32-bit scale (Dettmers et al. 2023, section 3)."""
CODE_BYTES, SCALE_CODE_BYTES = 16 * 4, (256 + 1) * 4
"""Code book of a 4-bit weight; of its quantized scales, with their mean."""
MIN_8BIT, STATES_PER_SCALE = 4096, 256
"""bitsandbytes' optimizers keep smaller tensors' moments in 32 bits; so many 8-bit moments share one 32-bit scale."""
MIN_PAGED = 10**5
"""bitsandbytes' paged optimizers keep smaller tensors' moments on the device."""


def base_bytes(shape: Shape, recipe: Recipe) -> float:
    """Of the frozen base; 4-bit weights are packed two a byte."""
    linear = 0.0
    for module, n_quantized in quantized(shape, recipe).items():
        width = 0.5 * n_quantized + recipe.stream_width * (shape.n_layer - n_quantized)
        linear += module.inputs * module.outputs * width
    return linear + shape.n_embedding_weights * recipe.embedding_width + shape.n_small_weights * recipe.stream_width


def unsplit_weights(shape: Shape, recipe: Recipe) -> int:
    """What the allocator gives beyond 4-bit weights: each is packed while it lies there at full width (transformers'
    Bnb4bitQuantize, one weight after the other), so it fills what the ones before have left; 0 at 16 bits.
    """
    if not recipe.is_quantized:
        return 0
    kept, width = _kept(shape, recipe), WIDTH[recipe.compute_dtype]
    sizes: list[tuple[int, int]] = []  # of a weight at 4 bits, and at full width while it is packed
    for block in range(shape.n_layer):
        for linear in shape.linears:
            size = linear.inputs * linear.outputs
            sizes.append((size * width, 0) if (block, linear) in kept else (size // 2, size * width))
    return unsplit_bytes([size for size, _ in sizes], [beside for _, beside in sizes])


def constants_bytes(shape: Shape, recipe: Recipe) -> int:
    """Of the scales and code books of 4-bit weights; 0 at 16 bits."""
    total = 0
    for linear, n_quantized in quantized(shape, recipe).items():
        scales = -(-linear.inputs * linear.outputs // BLOCK_SIZE)
        if recipe.double_quantization:
            of_one = scales + -(-scales // SCALES_PER_SCALE) * 4 + CODE_BYTES + SCALE_CODE_BYTES
        else:
            of_one = scales * 4 + CODE_BYTES
        total += n_quantized * of_one
    return total


def quantized(shape: Shape, recipe: Recipe) -> Mapping[Linear, int]:
    """In how many blocks each linear module is at 4 bits."""
    if not recipe.is_quantized:
        return dict.fromkeys(shape.linears, 0)
    n_kept = Counter(linear for _, linear in _kept(shape, recipe))
    return {linear: shape.n_layer - n_kept[linear] for linear in shape.linears}


def _kept(shape: Shape, recipe: Recipe) -> set[tuple[int, Linear]]:
    """Number of the block, and module, of what a 4-bit base keeps at 16 bits."""
    kept: set[tuple[int, Linear]] = set()
    for name in recipe.keep_16bit:
        block, inside = _place(name)
        for linear in shape.linears:
            if not inside or f".{inside}".endswith(f".{linear.name}"):
                kept.add((block, linear))
    return kept


def _place(name: str) -> tuple[int, str]:
    """Number of the block that a full name speaks of, and the name within it; "" for the whole block.

    >>> _place("model.layers.3.mlp.down_proj"), _place("transformer.h.11")
    ((3, 'mlp.down_proj'), (11, ''))
    """
    block, inside = re.search(r"\.(\d+)(?:\.|$)(.*)", name).groups()
    return int(block), inside


def adapter_bytes(shape: Shape, recipe: Recipe) -> int:
    """Of A and B of all adapted modules, and of their gradients."""
    return shape.n_layer * sum(4 * sum(_sizes(linear, recipe)) for linear in adapted(shape, recipe))


def moments_bytes(shape: Shape, recipe: Recipe) -> float:
    """Of AdamW's two moments, as far as they lie on the device."""
    total = 0.0
    for linear in adapted(shape, recipe):
        for n_elements in _sizes(linear, recipe):
            total += 2 * _moment_bytes(n_elements, recipe.optimizer)
    return shape.n_layer * total


def adapted(shape: Shape, recipe: Recipe) -> tuple[Linear, ...]:
    """The modules of a block that have an adapter, in the order of a forward pass."""
    return tuple(linear for linear in shape.linears if linear.name in recipe.targets)


def _sizes(linear: Linear, recipe: Recipe) -> tuple[int, int]:
    """Elements of A and B."""
    return recipe.rank * linear.inputs, recipe.rank * linear.outputs


def _moment_bytes(n_elements: int, optimizer: str) -> float:
    if optimizer.startswith("paged") and n_elements >= MIN_PAGED:
        return 0.0
    if optimizer.endswith("8bit") and n_elements >= MIN_8BIT:
        return n_elements + -(-n_elements // STATES_PER_SCALE) * 4
    return 4.0 * n_elements
