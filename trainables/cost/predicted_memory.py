"""Predicted peak memory of a training step, from shapes alone: no GPU, no weights, no PyTorch.

What is resident is counted exactly (trainables.cost.resident), what the forward pass keeps tensor by tensor
(trainables.cost.activations). The peak is the largest of four moments: the loss, the way back through the last block
and through the first, the optimizer's update. What the allocator gives beyond is replayed (trainables.cost.allocator).
Only the libraries' workspaces (trainables.cost.gpus) are set by hand; errors are measured: `make bench ARGS=memory`.
"""

from dataclasses import dataclass, fields

from trainables.cost.activations import (
    Kept,
    blocks_kept,
    boundaries_kept,
    head_kept,
    held_logits,
    mask_kept,
    recomputed,
    rounded_adapter,
)
from trainables.cost.allocator import unsplit_bytes
from trainables.cost.gpus import LARGE_WORKSPACES_MIB
from trainables.cost.recipe import Recipe, recipe_of
from trainables.cost.resident import adapter_bytes, base_bytes, constants_bytes, moments_bytes, unsplit_weights
from trainables.cost.shape import Shape
from trainables.cost.way_back import temporary_bytes
from trainables.values.config import LOSS_CHUNK_TOKENS, ComputeDtype, TrialConfig
from trainables.values.results import MIB, MemoryBreakdown

MAX_ERROR_SHARE, MAX_ERROR_MIB = 0.03, 32.0
"""A prediction may be off by the larger of the two; a config is refused only if it does not fit even then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What is on the device, beside what is resident, at one moment of a step; bytes.

    Attributes:
        activations: kept for the backward pass, and not yet freed by it.
        gradients: of the adapter, as far as they exist.
        temporary: results that nothing keeps.
    """

    activations: float
    gradients: float = 0.0
    temporary: float = 0.0

    @property
    def total(self) -> float:
        return self.activations + self.gradients + self.temporary


def predicted_breakdown(
    shape: Shape, config: TrialConfig, dtype: ComputeDtype, *, workspaces_mib: float = LARGE_WORKSPACES_MIB
) -> MemoryBreakdown:
    """Predicted parts of the memory at the peak of a trial's full step; their sum is the predicted peak.

    Args:
        workspaces_mib: see `breakdown_of`.
    """
    return breakdown_of(shape, recipe_of(config, dtype), workspaces_mib=workspaces_mib)


def predicted_peak_mib(
    shape: Shape, config: TrialConfig, dtype: ComputeDtype, *, workspaces_mib: float = LARGE_WORKSPACES_MIB
) -> float:
    """Predicted `peak_memory_mib` of a trial on a GPU; see `predicted_breakdown`."""
    return total_mib(predicted_breakdown(shape, config, dtype, workspaces_mib=workspaces_mib))


def total_mib(parts: MemoryBreakdown) -> float:
    """The peak of a breakdown."""
    return sum(getattr(parts, field.name) for field in fields(parts))


def breakdown_of(shape: Shape, recipe: Recipe, *, workspaces_mib: float = LARGE_WORKSPACES_MIB) -> MemoryBreakdown:
    """Predicted parts of the memory at the peak of a recipe's full step.

    Args:
        workspaces_mib: of the device's libraries, see trainables.cost.gpus.
    """
    peak = max(moments(shape, recipe), key=lambda moment: moment.total)
    return MemoryBreakdown(
        base_weights_mib=base_bytes(shape, recipe) / MIB,
        quantization_constants_mib=constants_bytes(shape, recipe) / MIB,
        adapter_mib=adapter_bytes(shape, recipe) / MIB,
        gradients_mib=peak.gradients / MIB,
        optimizer_mib=moments_bytes(shape, recipe) / MIB,
        activations_mib=peak.activations / MIB,
        rest_mib=peak.temporary / MIB + workspaces_mib + unsplit_weights(shape, recipe) / MIB,
    )


def moments(shape: Shape, recipe: Recipe) -> tuple[Moment, ...]:
    """The moments of a step that can be its peak: the loss, the last block, the first block, the update."""
    n_tokens, gradients, back = recipe.n_tokens, adapter_bytes(shape, recipe), temporary_bytes(shape, recipe)
    if recipe.gradient_checkpointing:
        in_blocks, once_more = boundaries_kept(shape, recipe), recomputed(shape, recipe)
        one_block = float(sum(once_more))
    else:
        in_blocks, once_more = blocks_kept(shape, recipe), ()
        one_block = sum(in_blocks) / shape.n_layer
    all_of_last = in_blocks + once_more
    logits, mask = n_tokens * held_logits(shape, recipe), n_tokens * mask_kept(shape, recipe)
    held = mask + (0 if recipe.autocast else logits)
    rounded_at_loss, rounded_at_last, rounded_at_first = _rounded(shape, recipe)
    at_loss = n_tokens * (sum(in_blocks) + head_kept(shape, recipe)) + rounded_at_loss + mask + logits
    at_last = n_tokens * sum(all_of_last) + rounded_at_last + held
    at_first = n_tokens * one_block + rounded_at_first + held
    return (
        Moment(activations=at_loss, temporary=_loss_bytes(shape, recipe) + _unsplit(recipe, in_blocks)),
        Moment(activations=at_last, temporary=back + _unsplit(recipe, all_of_last)),
        Moment(activations=at_first, gradients=gradients, temporary=back),
        Moment(activations=held, gradients=gradients, temporary=_update_bytes(recipe, gradients)),
    )


def _rounded(shape: Shape, recipe: Recipe) -> tuple[float, float, float]:
    """Bytes of the adapter in the dtype of its products, at the loss, at the last and at the first block.

    The lean loop rounds all of it once a step; else each module keeps its own with its other tensors.
    """
    rounded = float(rounded_adapter(shape, recipe))
    if recipe.script == "lean":
        return rounded, rounded, rounded
    of_block = rounded / shape.n_layer
    return (0.0, of_block, of_block) if recipe.gradient_checkpointing else (rounded, rounded, of_block)


def _loss_bytes(shape: Shape, recipe: Recipe) -> float:
    """Temporary bytes of the loss: two gradients of float32 logits.

    In the lean loop the logits of one chunk, or they and their log-softmax in float32, beside two copies of the last
    hidden states; then the gradient to these, in float32 beside two in their own dtype.
    """
    if recipe.script == "lean":
        a_logit = recipe.stream_width if recipe.loss_in_place else 8
        chunk = min(recipe.n_tokens, LOSS_CHUNK_TOKENS) * shape.vocab_size * a_logit
        n_states = recipe.n_tokens * shape.hidden_size
        return n_states * 2 * recipe.stream_width + max(chunk, n_states * 4)
    return recipe.n_tokens * shape.vocab_size * 8


def _update_bytes(recipe: Recipe, gradients: float) -> float:
    """PyTorch's AdamW makes the roots of all second moments at once; the lean loop's is one kernel."""
    return gradients if recipe.script != "lean" and recipe.optimizer == "adamw" else 0.0


def _unsplit(recipe: Recipe, kept: Kept) -> int:
    """What the allocator gives beyond the tensors that are kept."""
    return unsplit_bytes(recipe.n_tokens * size for size in kept)
