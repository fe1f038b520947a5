"""Which point of the searched space a trial stands for."""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search_spaces import Parameter, Space
    from trainables.values.config import TrialConfig

ROUNDING = 1e-9
"""alpha_ratio is alpha / rank again, not always to the last bit."""


def point_of(config: "TrialConfig", space: "Space") -> dict[str, Any] | None:
    """A value for each parameter; None of a config that the space does not hold (a baseline at another precision)."""
    if space.fixed.get("precision", config.precision) != config.precision:
        return None
    params = {}
    for name, parameter in space.parameters.items():
        params[name] = _param(parameter, _asked(config, name))
    return None if None in params.values() else params


def _asked(config: "TrialConfig", name: str) -> Any:
    if name == "alpha_ratio":
        return config.alpha / config.rank
    value = getattr(config, name)
    return "+".join(value) if name == "targets" else value


def _param(parameter: "Parameter", value: Any) -> Any:
    """The choice that a value is, or the value within its range; None where it is neither."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if parameter.choices is None:
        low, high = parameter.min or 0.0, parameter.max or 0.0
        return min(max(value, low), high) if low * (1 - ROUNDING) <= value <= high * (1 + ROUNDING) else None
    same = (c for c in parameter.choices if c == value or (number and math.isclose(float(c), value, rel_tol=ROUNDING)))
    return next(same, None)
