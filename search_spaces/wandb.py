"""A W&B sweep file, taken as it is: what it says otherwise than a space does, and what means nothing here."""

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

IGNORED = ("metric", "program", "command", "project", "entity", "run_cap", "controller", "imageuri", "job")
"""Top-level keys of W&B's alone: what is minimised says --objective, how many trials --trials."""
HYPERBAND_ETA = 3
"""W&B's default: one in so many goes on at each rung."""


def as_space(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The same sweep in a space's own keys; what is neither W&B's nor ours is left for the check to name.

    >>> as_space({"method": "bayes", "parameters": {"alpha": {"value": 8}, "rank": {"values": [1]}}}, "it")
    {'method': 'tpe', 'parameters': {'rank': {'values': [1]}}, 'fixed': {'alpha': 8}}
    """
    space = {name: value for name, value in values.items() if name not in IGNORED}
    if ignored := [name for name in values if name in IGNORED]:
        logger.info("%s: %s: of W&B's, without a meaning here", source, ", ".join(ignored))
    if space.get("method") == "bayes":
        logger.info("%s: method bayes is tpe here", source)
        space["method"] = "tpe"
    if isinstance(space.get("early_terminate"), Mapping):
        space["early_terminate"] = _rule(space["early_terminate"], source)
    parameters, fixed = space.get("parameters"), space.get("fixed", {})
    if isinstance(parameters, Mapping):
        space["parameters"], constant = _settings(parameters)
        if constant and isinstance(fixed, Mapping):
            twice = {name: {"values": [constant[name]]} for name in constant if name in fixed}
            space["parameters"] |= twice  # for the check, which names what stands in both
            space["fixed"] = {**constant, **fixed}
    return space


def _settings(parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is searched, and what has one value."""
    searched, constant = {}, {}
    for name, parameter in parameters.items():
        if isinstance(parameter, Mapping) and "value" in parameter and parameter.keys() <= {"value", "distribution"}:
            constant[name] = parameter["value"]
        else:
            searched[name] = _parameter(parameter) if isinstance(parameter, Mapping) else parameter
    return searched, constant


def _parameter(parameter: Mapping[str, Any]) -> dict[str, Any]:
    """A searched setting; bare ends are a range of whole numbers where both are whole, as W&B takes them."""
    if "values" in parameter and parameter.get("distribution") == "categorical":
        return {name: value for name, value in parameter.items() if name != "distribution"}
    ends = parameter.get("min"), parameter.get("max")
    if "distribution" in parameter or "values" in parameter or None in ends:
        return dict(parameter)
    whole = all(type(end) is int for end in ends)
    return {**parameter, "distribution": "int_uniform" if whole else "uniform"}


def _rule(rule: Mapping[str, Any], source: str) -> dict[str, Any]:
    """W&B's hyperband stops as asha does; its iterations are not this program's rungs."""
    if rule.get("type") != "hyperband":
        return dict(rule)
    eta = rule.get("eta", HYPERBAND_ETA)
    logger.info("%s: early_terminate hyperband is asha with eta %s here, at rungs of its own", source, eta)
    return {"type": "asha", "eta": eta}
