"""Temporary bytes of the backward pass: what exists for a moment while it goes through one block.

Walked in the block's last part, before much of what the forward pass kept is freed: the MLP's output, its activation,
its inputs. Attention comes later, when the MLP's tensors, the largest of a block, are gone.
"""

from trainables.cost.activations import activation_kept, adapter_kept
from trainables.cost.recipe import WIDTH, Recipe
from trainables.cost.resident import quantized
from trainables.cost.shape import Linear, Shape


def temporary_bytes(shape: Shape, recipe: Recipe) -> float:
    """The most that exists at one moment, beside all that is kept and a gradient of the residual stream."""
    stream = shape.hidden_size * recipe.stream_width
    output = next(linear for linear in shape.linears if linear.role == "mlp output")
    inputs = [linear for linear in shape.linears if linear.role == "mlp input"]
    freed = adapter_kept(shape, recipe, output) if output.name in recipe.targets else 0
    at_activation = shape.mlp_size * recipe.stream_width * (3 if shape.gated else 2) - freed
    freed += sum(activation_kept(shape, recipe))
    at_inputs = _to_inputs(shape, recipe, inputs) - freed
    n_quantized = quantized(shape, recipe)
    weight = max(linear.inputs * linear.outputs * (n_quantized[linear] > 0) for linear in (output, *inputs))
    a_token = max(_to_output(recipe, output), at_activation, at_inputs)
    return recipe.n_tokens * (stream + a_token) + weight * WIDTH[recipe.compute_dtype]


def _to_output(recipe: Recipe, output: Linear) -> int:
    """Bytes a token: the gradient of the activation; an adapter's float32 input and its gradient beside it."""
    gradient = output.inputs * recipe.stream_width
    if output.name in recipe.targets and _is_float32(recipe):
        gradient += output.inputs * 4 * (2 if recipe.dropout else 1)
    return gradient


def _to_inputs(shape: Shape, recipe: Recipe, inputs: list[Linear]) -> int:
    """Bytes a token: the gradients of what the inputs put out, and one in float32 for an adapter."""
    gradients = shape.mlp_size * recipe.stream_width * len(inputs)
    if recipe.adapter_width == 4 and any(linear.name in recipe.targets for linear in inputs):
        gradients += shape.mlp_size * 4
    return gradients


def _is_float32(recipe: Recipe) -> bool:
    """peft casts an adapter's input to float32 first, whatever its products are in; the lean loop does not."""
    return recipe.script != "lean" or recipe.adapter_width == 4
