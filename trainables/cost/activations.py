"""What the forward pass keeps for the backward pass: bytes a token of each tensor, in the order of that pass.

As the modules of transformers, of peft and of trainables.models.lean keep it on a GPU. A frozen linear module keeps
nothing: its weight is there anyway, and its weight needs no gradient. Each of the three parts of a block that a fused
kernel can replace stands in a function of its own: `norm_kept`, `attention_kept`, `activation_kept`.
"""

from trainables.cost.recipe import Recipe
from trainables.cost.resident import adapted, adapter_bytes
from trainables.cost.shape import Linear, Shape

Kept = tuple[int, ...]
"""Bytes a token of each tensor, in the order in which they are made."""


def norm_kept(shape: Shape, recipe: Recipe, features: int) -> Kept:
    """LayerNorm: its input (which autocast makes float32), mean and deviation. RMSNorm: its input; transformers' own
    keeps it in float32, beside 1 / root mean square."""
    if shape.layer_norm:
        return features * (4 if recipe.autocast else recipe.stream_width), 4, 4
    if recipe.script == "lean":
        return (features * recipe.stream_width,)
    return features * 4, 4


def attention_kept(shape: Shape, recipe: Recipe, *, windowed: bool) -> Kept:
    """Rotated queries and keys, values, the output, and a log-sum for each head.

    A fused kernel takes fewer key heads than query heads; not where a window needs a mask: then keys and values are
    repeated for each query head (a single head is only viewed so), and the mask is kept in their dtype.
    """
    width, kv_size = recipe.product_width, shape.query_size if windowed and shape.n_kv_head > 1 else shape.kv_size
    mask = recipe.max_length_tokens * width if windowed else 0
    return *(size * width for size in (shape.query_size, kv_size, kv_size, shape.query_size)), 4 * shape.n_head, mask


def activation_kept(shape: Shape, recipe: Recipe) -> tuple[Kept, Kept]:
    """Between the MLP's inputs, and between them and its output.

    Gated: gate(x); the activation and up(x), which are multiplied. In the lean loop that is one operation, which keeps
    gate(x) and up(x). GPT-2's gelu_new: four tensors, three of them in float32 under autocast, which computes powers
    so; in the lean loop, where it is one operation, its input.
    """
    size, is_lean = shape.mlp_size * recipe.stream_width, recipe.script == "lean"
    if not shape.gated:
        tanh = shape.mlp_size * (4 if recipe.autocast else recipe.stream_width)
        return (), (size,) if is_lean else (size, tanh, tanh, tanh)
    return () if is_lean else (size,), (size, size)


def kept_before(shape: Shape, recipe: Recipe, *, windowed: bool) -> dict[str, Kept]:
    """What the base keeps on the way to each linear module of a block, by name; under "" what comes after the last."""
    norm = norm_kept(shape, recipe, shape.hidden_size)
    behind = norm if shape.n_block_norms == 4 else ()
    between, after = activation_kept(shape, recipe)
    kept: dict[str, Kept] = {}
    for n, linear in enumerate(shape.linears):
        is_first = n == 0 or shape.linears[n - 1].role != linear.role
        match linear.role:
            case "qkv":
                kept[linear.name] = norm if is_first else ()
                if shape.head_norms and n in (1, 2):  # of the queries, then of the keys
                    heads = shape.n_head if n == 1 else shape.n_kv_head
                    kept[linear.name] = tuple(heads * size for size in norm_kept(shape, recipe, shape.head_dim))
            case "attention output":
                kept[linear.name] = attention_kept(shape, recipe, windowed=windowed)
            case "mlp input":
                kept[linear.name] = behind + norm if is_first else between
            case "mlp output":
                kept[linear.name] = after
    return kept | {"": behind}


def adapter_kept(shape: Shape, recipe: Recipe, linear: Linear) -> Kept:
    """An adapted module's input, its dropout's mask, and A's product.

    The lean loop keeps the module's own input, which modules share: each norm's output once, and attention's output
    not again. peft's forward makes a copy for each module, unless the input has the adapter's dtype already.
    """
    mask = linear.inputs if recipe.dropout and recipe.keeps_masks else 0
    product = recipe.rank * recipe.adapter_width
    if not _shares_input(recipe):
        return linear.inputs * recipe.adapter_width, mask, product
    first = next(other for other in adapted(shape, recipe) if other.role == linear.role)
    is_kept = linear.role == "attention output" or linear is not first
    return 0 if is_kept else linear.inputs * recipe.stream_width, mask, product


def _shares_input(recipe: Recipe) -> bool:
    return recipe.script == "lean" or (not recipe.dropout and recipe.stream_width == recipe.adapter_width == 4)


def block_kept(shape: Shape, recipe: Recipe, *, windowed: bool = False) -> Kept:
    """All that a block keeps."""
    return _kept_from(shape.linears[0], shape, recipe, windowed=windowed)


def recomputed(shape: Shape, recipe: Recipe) -> Kept:
    """What a block keeps that runs forward again: not the residual stream in front of it, which is there already."""
    kept = block_kept(shape, recipe, windowed=needs_mask(shape, recipe))
    return kept[1:] if kept[0] == shape.hidden_size * recipe.stream_width else kept


def blocks_kept(shape: Shape, recipe: Recipe) -> Kept:
    """All that all blocks keep, without checkpointing; nothing before the first adapter of the first block."""
    n_windowed = shape.n_sliding if needs_mask(shape, recipe) else 0
    first = _kept_from(adapted(shape, recipe)[0], shape, recipe, windowed=n_windowed > 0, after=True)
    windowed = block_kept(shape, recipe, windowed=True) * max(0, n_windowed - 1)
    return first + windowed + block_kept(shape, recipe) * (shape.n_layer - max(1, n_windowed))


def _kept_from(first: Linear, shape: Shape, recipe: Recipe, *, windowed: bool, after: bool = False) -> Kept:
    """What a block keeps from one linear module on; `after`: without what is kept on the way to it."""
    before = kept_before(shape, recipe, windowed=windowed)
    if after:
        before[first.name] = ()
    kept: Kept = ()
    for linear in shape.linears[shape.linears.index(first) :]:
        kept += before[linear.name]
        if linear.name in recipe.targets:
            kept += adapter_kept(shape, recipe, linear)
    return kept + before[""]


def rounded_adapter(shape: Shape, recipe: Recipe) -> int:
    """Bytes of A and B in the dtype of their products, which each adapted module keeps; 0 where that is their own."""
    return adapter_bytes(shape, recipe) // 4 * recipe.adapter_width if recipe.adapter_width < 4 else 0


def needs_mask(shape: Shape, recipe: Recipe) -> bool:
    """Whether a row is so long that a window needs a mask."""
    return 0 < shape.sliding_window <= recipe.max_length_tokens and shape.n_sliding > 0


def boundaries_kept(shape: Shape, recipe: Recipe) -> Kept:
    """What blocks keep with checkpointing: the stream in front of each."""
    return (shape.hidden_size * recipe.stream_width,) * shape.n_layer


def head_kept(shape: Shape, recipe: Recipe) -> int:
    """After the blocks: the last norm's part, and the loss's: log-probabilities, or in the lean loop a gradient."""
    loss = shape.hidden_size if recipe.script == "lean" else shape.vocab_size
    return sum(norm_kept(shape, recipe, shape.hidden_size)) + 4 * loss


def held_logits(shape: Shape, recipe: Recipe) -> int:
    """The model's own logits, which a stock script holds in `outputs` beside the loss's float32 ones."""
    return shape.vocab_size * recipe.product_width if recipe.script == "stock" else 0


def mask_kept(shape: Shape, recipe: Recipe) -> int:
    """The mask that all blocks with a window share: a byte for each pair of positions of each row."""
    return recipe.max_length_tokens if needs_mask(shape, recipe) else 0
