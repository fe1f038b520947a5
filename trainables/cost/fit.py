"""Whether a recipe fits a device, the largest batch that does, and from where on 4 bits need less than 16. Pure."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainables.cost.gpus import SMALL_WORKSPACES_MIB
from trainables.cost.predicted_memory import breakdown_of, total_mib
from trainables.cost.recipe import Recipe
from trainables.cost.shape import Shape
from trainables.values.results import MemoryBreakdown

MAX_BATCH_SIZE = 65_536
"""No larger one is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a device has.

    Attributes:
        memory_mib: that tensors can take; None where no device was named.
        workspaces_mib: that CUDA's libraries take of it, see trainables.cost.gpus.
    """

    memory_mib: float | None = None
    workspaces_mib: float = SMALL_WORKSPACES_MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The predicted memory of one recipe on one device.

    Attributes:
        parts: at the peak; they add up to it.
        fits: whether the peak is within the budget; None where it is not known.
        largest_batch: the most rows of this length that fit, 0 where not one does; None where the budget is not known.
    """

    recipe: Recipe
    parts: MemoryBreakdown
    fits: bool | None
    largest_batch: int | None

    @property
    def peak_mib(self) -> float:
        return total_mib(self.parts)

    @property
    def resident_mib(self) -> float:
        """What stays from step to step: base, constants, adapter and moments."""
        parts = self.parts
        return parts.base_weights_mib + parts.quantization_constants_mib + parts.adapter_mib + parts.optimizer_mib

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        recipe = self.recipe
        return {
            "precision": recipe.precision,
            "loop": "standard" if recipe.script == "stock" else recipe.script,
            "batch_size": recipe.batch_size,
            "max_length_tokens": recipe.max_length_tokens,
            "gradient_checkpointing": recipe.gradient_checkpointing,
            "prepare_kbit": recipe.prepare_kbit,
            "double_quantization": recipe.double_quantization,
            "rank": recipe.rank,
            "targets": list(recipe.targets),
            "compute_dtype": recipe.compute_dtype,
            "optimizer": recipe.optimizer,
            "peak_mib": round(self.peak_mib, 2),
            "resident_mib": round(self.resident_mib, 2),
            "breakdown": {name: round(mib, 2) for name, mib in asdict(self.parts).items()},
            "fits": self.fits,
            "largest_batch": self.largest_batch,
        }


def fit_of(shape: Shape, recipe: Recipe, budget: Budget) -> Fit:
    """Predict a recipe, and hold it against a budget."""
    parts = breakdown_of(shape, recipe, workspaces_mib=budget.workspaces_mib)
    if budget.memory_mib is None:
        return Fit(recipe=recipe, parts=parts, fits=None, largest_batch=None)
    memory_mib = budget.memory_mib

    def has_room(batch_size: int) -> bool:
        return peak_mib(shape, replace(recipe, batch_size=batch_size), budget) <= memory_mib

    fits = total_mib(parts) <= memory_mib
    return Fit(recipe=recipe, parts=parts, fits=fits, largest_batch=last_true(has_room, MAX_BATCH_SIZE))


def peak_mib(shape: Shape, recipe: Recipe, budget: Budget) -> float:
    """Predicted peak of a recipe on a device."""
    return total_mib(breakdown_of(shape, recipe, workspaces_mib=budget.workspaces_mib))


def longest_paying_row(shape: Shape, four: Recipe, sixteen: Recipe, budget: Budget) -> int:
    """Tokens of the longest row at which the 4-bit recipe needs less than the 16-bit one; 0: at none.

    After peft's preparation the residual stream and the logits of a 4-bit model are float32, and what that costs grows
    with the row, while what 4 bits save does not.
    """

    def pays(length: int) -> bool:
        pair = (peak_mib(shape, replace(recipe, max_length_tokens=length), budget) for recipe in (four, sixteen))
        return next(pair) < next(pair)

    return last_true(pays, shape.context_tokens)


def last_true(holds: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` for which something holds that, once it fails, fails for all larger ones.

    >>> last_true(lambda n: n * n < 50, 100), last_true(lambda n: False, 100), last_true(lambda n: True, 100)
    (7, 0, 100)
    """
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
