"""What `fit` is asked about a base, as recipes, and from where on 4 bits pay. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import Field, ValidationError

from search_spaces import Frozen, first_fault
from trainables.cost.fit import Budget, longest_paying_row
from trainables.cost.recipe import Optimizer, Recipe, stock
from trainables.cost.shape import GROUPS, Shape
from trainables.values.config import MAX_WHOLE, ComputeDtype, Loop, Precision
from trainables.values.errors import ConfigError, did_you_mean

TABLE_LENGTHS = (512, 2048)
"""Of a table where no row length is asked for."""
WORDS = {
    "precision": get_args(Precision),
    "loop": get_args(Loop),
    "compute_dtype": get_args(ComputeDtype),
    "optimizer": get_args(Optimizer),
}
"""Settings that are one of a few words."""


class Question(Frozen):
    """Settings of the recipes; each is an option of `fit`, with its description as help.

    Attributes:
        precision, loop, max_length_tokens: None asks for all; all three make one point. The standard loop is a stock
            script's, see Recipe.
        gradient_checkpointing: False asks for both in a table.
        prepare_kbit: False prepares the 4-bit bases of a stock script in a table, as such scripts do.
        compute_dtype: None takes what the GPU has in hardware.
    """

    precision: str | None = Field(None, description="16bit or nf4; default: both")
    loop: str | None = Field(None, description="lean, or standard for a stock script; default: both")
    batch_size: int = Field(4, description="rows a step (default: 4)", ge=1, le=MAX_WHOLE)
    max_length_tokens: int | None = Field(None, description="tokens a row; default: 512 and 2,048", ge=1, le=MAX_WHOLE)
    gradient_checkpointing: bool = Field(False, description="run blocks again on the way back; a table has both")
    rank: int = Field(16, description="of the adapter (default: 16)", ge=1, le=MAX_WHOLE)
    targets: str = Field("all-linear", description="modules or groups, joined by + (default: all-linear)")
    dropout: float = Field(0.05, description="on the adapter's input (default: 0.05)", ge=0, lt=1)
    optimizer: str = Field("adamw", description="adamw (default), or adamw_8bit, paged_adamw_8bit, paged_adamw_32bit")
    compute_dtype: str | None = Field(None, description="default: bfloat16 where the GPU has it, else float16")
    prepare_kbit: bool = Field(False, description="after peft's prepare_model_for_kbit_training")
    double_quantization: bool = Field(True, description="quantize the scales of 4-bit weights once more")

    @property
    def is_point(self) -> bool:
        """Whether one recipe is asked for."""
        return None not in (self.precision, self.loop, self.max_length_tokens)


def question(given: dict[str, Any]) -> Question:
    """A question from the values that were given.

    Raises:
        ConfigError: a value is out of range, or is none of the words; the message names the field.
    """
    try:
        asked = Question.model_validate(given)
    except ValidationError as error:
        raise ConfigError(first_fault(error, Question)) from None
    for field, words in WORDS.items():
        word = getattr(asked, field)
        if word is not None and word not in words:
            raise ConfigError(f"{field}: no {field} {word!r}{did_you_mean(word, words)}")
    if asked.prepare_kbit and asked.loop == "lean":
        raise ConfigError("prepare_kbit is for a stock script; the lean loop prepares nothing: say --loop standard")
    return asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipes:
    """The recipes of a question about one base.

    Attributes:
        native_dtype: where the question names none.
    """

    asked: Question
    shape: Shape
    native_dtype: ComputeDtype

    def __post_init__(self) -> None:
        length, positions = self.asked.max_length_tokens, self.shape.context_tokens
        if length is not None and length > positions:
            raise ConfigError(
                f"max_length_tokens is {length}, but the model has {positions} positions; give at most {positions}"
            )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of the rows, each once."""
        if self.asked.max_length_tokens is not None:
            return (self.asked.max_length_tokens,)
        return tuple(sorted({min(length, self.shape.context_tokens) for length in TABLE_LENGTHS}))

    def __iter__(self) -> Iterator[Recipe]:
        asked = self.asked
        for length in self.lengths:
            for loop in [asked.loop] if asked.loop else ("standard", "lean"):
                for checkpointing in self._checkpointing():
                    for precision in [asked.precision] if asked.precision else ("16bit", "nf4"):
                        yield self.recipe(precision, loop, checkpointing, length)

    def _checkpointing(self) -> tuple[bool, ...]:
        asked = self.asked.gradient_checkpointing
        return (asked,) if asked or self.asked.is_point else (False, True)

    def recipe(self, precision: str, loop: str, checkpointing: bool, length: int) -> Recipe:
        """One of them."""
        asked = self.asked
        settings: dict[str, Any] = {
            "precision": precision,
            "rank": asked.rank,
            "targets": targets_of(asked.targets, self.shape),
            "batch_size": asked.batch_size,
            "max_length_tokens": length,
            "compute_dtype": asked.compute_dtype or self.native_dtype,
            "dropout": asked.dropout > 0,
            "double_quantization": asked.double_quantization,
            "gradient_checkpointing": checkpointing,
            "optimizer": asked.optimizer,
        }
        if loop == "lean":
            return Recipe(**settings, script="lean", adapter_dtype=settings["compute_dtype"])
        prepare = asked.prepare_kbit or (precision == "nf4" and not asked.is_point)
        return stock(**settings, prepare_kbit=prepare)

    def paying_rows(self, budget: Budget) -> list[dict[str, Any]]:
        """For each loop, with and without checkpointing: the longest row at which 4 bits need less than 16."""
        found = []
        for loop in [self.asked.loop] if self.asked.loop else ("standard", "lean"):
            for checkpointing in self._checkpointing():
                four, sixteen = (self.recipe(precision, loop, checkpointing, 1) for precision in ("nf4", "16bit"))
                longest = longest_paying_row(self.shape, four, sixteen, budget)
                settings = {"loop": loop, "gradient_checkpointing": checkpointing, "prepare_kbit": four.prepare_kbit}
                found.append(settings | {"batch_size": four.batch_size, "longest_row_tokens": longest})
        return found


def targets_of(text: str, shape: Shape) -> tuple[str, ...]:
    """Modules that names and groups joined by + or , stand for, in the order of a forward pass.

    Raises:
        ConfigError: the model has no such module.
    """
    chosen: set[str] = set()
    for name in _parts(text):
        if name in GROUPS:
            chosen |= set(shape.group(name))
        elif name in shape.modules:
            chosen.add(name)
        else:
            raise ConfigError(f"targets: no module {name!r}{did_you_mean(name, [*shape.modules, *GROUPS])}")
    return tuple(name for name in shape.modules if name in chosen)


def _parts(text: str) -> Iterable[str]:
    return (part.strip() for part in text.replace(",", "+").split("+"))
