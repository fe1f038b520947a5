"""The parts of a search space: searched settings and the rule that stops weak trials."""

import logging
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

logger = logging.getLogger(__name__)

Scalar = bool | int | float | str


class Frozen(BaseModel):
    """Base of every value that is read from outside: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Parameter(Frozen):
    """One searched setting: a list of values, or a range.

    Attributes:
        values: choices; several target modules, or groups of them, may be written as a list or joined by "+".
        distribution: how a range is drawn; "log_uniform_values" is uniform in the logarithm.
        min, max: ends of the range, both included.
    """

    values: tuple[Scalar | tuple[str, ...], ...] | None = None
    distribution: Literal["uniform", "log_uniform_values", "int_uniform"] | None = None
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _one_form(self) -> "Parameter":
        if self.values is not None:
            if (self.distribution, self.min, self.max) != (None, None, None):
                raise ValueError("give either values, or distribution with min and max")
            if not self.values:
                raise ValueError("values must hold at least one value")
        elif None in (self.distribution, self.min, self.max):
            raise ValueError("needs values, or distribution with min and max")
        elif not self.min < self.max:  # type: ignore[operator]  # also refuses NaN
            raise ValueError(f"min must be under max, got {self.min!r} and {self.max!r}")
        elif self.distribution == "log_uniform_values" and self.min <= 0:  # type: ignore[operator]
            raise ValueError(f"min must be above 0 for log_uniform_values, got {self.min!r}")
        elif self.distribution == "int_uniform" and not (self.min.is_integer() and self.max.is_integer()):  # type: ignore[union-attr]
            raise ValueError(f"min and max must be whole numbers for int_uniform, got {self.min!r} and {self.max!r}")
        return self

    @property
    def choices(self) -> tuple[Scalar, ...] | None:
        """The values as scalars, targets joined by "+"; None for a range."""
        if self.values is None:
            return None
        return tuple("+".join(v) if isinstance(v, tuple) else v for v in self.values)

    def in_optuna(self) -> "BaseDistribution":
        """As Optuna's samplers and importances take it."""
        from optuna import distributions  # half a second

        if self.choices is not None:
            return distributions.CategoricalDistribution(self.choices)
        low, high = self.min or 0.0, self.max or 0.0
        if self.distribution == "int_uniform":
            return distributions.IntDistribution(int(low), int(high))
        return distributions.FloatDistribution(low, high, log=self.distribution == "log_uniform_values")

    @property
    def samples(self) -> tuple[Scalar, ...]:
        """Values that show whether the whole parameter is valid: all choices, or both ends."""
        if self.values is not None:
            return self.choices or ()
        ends = (self.min, self.max)
        return tuple(int(end) for end in ends) if self.distribution == "int_uniform" else ends  # type: ignore[arg-type, return-value]


class EarlyTerminate(Frozen):
    """How weak trials are stopped.

    Attributes:
        type: at each rung "hypervolume" stops what even at its most hopeful end the front so far would dominate, at the
            last one a 4-bit trial whose baseline then need not run; "asha" keeps the best 1 / eta by
            held-out loss; "none" keeps all. Each but "none" loses members of the front.
        eta: of asha.
        min_share: share of its steps that every trial is given before it may be stopped.
        min_gain: of hypervolume: a trial must have the hope to add more than this share of what the front dominates.
    """

    type: Literal["hypervolume", "asha", "none"] = "hypervolume"
    eta: float = Field(default=2, gt=1, le=8)
    min_share: float = Field(default=0.125, gt=0, le=1)
    min_gain: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _without_moasha(cls, values: Any) -> Any:
        """Spaces and settings from before may name a rule that is gone, and its own setting."""
        if not isinstance(values, dict):
            return values
        if values.get("type", "moasha" if "stratum_share" in values else None) == "moasha":
            logger.warning("early_terminate: moasha is no rule any more; hypervolume stops trials instead")
            values = values | {"type": "hypervolume"}
        return {name: value for name, value in values.items() if name != "stratum_share"}
