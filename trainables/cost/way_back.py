"""Temporary bytes of the backward pass: what exists for a moment while it goes through one block.

Walked at four places, each after what the ones before have freed of that which the forward pass kept: the MLP's
output, its activation, its inputs, attention. A 4-bit weight is dequantized while a gradient goes through its product,
and gone where there is none.
"""

from trainables.cost.activations import activation_kept, adapter_kept, kept_before, needs_mask
from trainables.cost.recipe import WIDTH, Recipe
from trainables.cost.resident import quantized
from trainables.cost.shape import Linear, Role, Shape


def temporary_bytes(shape: Shape, recipe: Recipe) -> float:
    """The most that exists at one moment, beside all that is kept and a gradient of the residual stream."""
    behind = sum(kept_before(shape, recipe, windowed=False)[""])  # freed for a gradient of its size, until the product
    at_output = _to_output(shape, recipe)
    freed = behind + _adapters_kept(shape, recipe, "mlp output")
    at_activation = shape.mlp_size * recipe.stream_width * (3 if shape.gated else 2) - freed
    freed += sum(map(sum, activation_kept(shape, recipe)))
    at_inputs = _to_inputs(shape, recipe) - freed
    freed += _adapters_kept(shape, recipe, "mlp input") + _norms_kept(shape, recipe)
    at_attention = attention_bytes(shape, recipe) - freed - _adapters_kept(shape, recipe, "attention output")
    return recipe.n_tokens * shape.hidden_size * recipe.stream_width + max(
        recipe.n_tokens * at_output + _dequantized(shape, recipe, "mlp output"),
        recipe.n_tokens * at_activation,
        recipe.n_tokens * at_inputs + _dequantized(shape, recipe, "mlp input"),
        recipe.n_tokens * at_attention,
    )


def attention_bytes(shape: Shape, recipe: Recipe) -> int:
    """Bytes a token in a fused kernel's backward pass: gradients of its output, queries, keys and values, and of the
    queries once more in float32, where they are summed.

    With fewer key heads the gradients of keys and values are made for each query head, then summed over those that
    share one (mha_bwd in PyTorch's flash_attn/flash_api.cpp: dq_accum, dk_expanded, dv_expanded). Where a window
    needs a mask, keys and values are repeated beforehand, and autograd sums once the kernel's float32 is freed.
    """
    width, is_summed_inside = recipe.product_width, shape.n_kv_head < shape.n_head and not needs_mask(shape, recipe)
    summed = 2 * shape.kv_size * width if is_summed_inside else 0
    return 4 * shape.query_size * width + 4 * shape.query_size + summed


def _linears(shape: Shape, role: Role) -> list[Linear]:
    return [linear for linear in shape.linears if linear.role == role]


def _adapters_kept(shape: Shape, recipe: Recipe, role: Role) -> int:
    found = [linear for linear in _linears(shape, role) if linear.name in recipe.targets]
    return sum(sum(adapter_kept(shape, recipe, linear)) for linear in found)


def _norms_kept(shape: Shape, recipe: Recipe) -> int:
    """Of the norms between attention and the MLP."""
    return sum(kept_before(shape, recipe, windowed=False)[_linears(shape, "mlp input")[0].name])


def _dequantized(shape: Shape, recipe: Recipe, role: Role) -> int:
    """Bytes of the largest 4-bit weight of a role in the compute dtype; 0 where all are at 16 bits."""
    n_quantized = quantized(shape, recipe)
    sizes = [linear.inputs * linear.outputs for linear in _linears(shape, role) if n_quantized[linear]]
    return max(sizes, default=0) * WIDTH[recipe.compute_dtype]


def _to_output(shape: Shape, recipe: Recipe) -> int:
    """Bytes a token: the gradient of the activation; an adapter's float32 input and its gradient beside it."""
    (output,) = _linears(shape, "mlp output")
    gradient = output.inputs * recipe.stream_width
    if output.name in recipe.targets and _is_float32(recipe):
        gradient += output.inputs * 4 * (2 if recipe.dropout else 1)
    return gradient


def _to_inputs(shape: Shape, recipe: Recipe) -> int:
    """Bytes a token: the gradients of what the inputs put out, and one in float32 for an adapter."""
    inputs = _linears(shape, "mlp input")
    gradients = shape.mlp_size * recipe.stream_width * len(inputs)
    if recipe.adapter_width == 4 and any(linear.name in recipe.targets for linear in inputs):
        gradients += shape.mlp_size * 4
    return gradients


def _is_float32(recipe: Recipe) -> bool:
    """peft casts an adapter's input to float32 first, whatever its products are in; the lean loop does not."""
    return recipe.script != "lean" or recipe.adapter_width == 4
