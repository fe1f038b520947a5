"""What is wrong with a value read from outside, as lines that name the key, the rule and the value."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from search_spaces.parts import EarlyTerminate, Parameter
from trainables.values.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails


def first_fault(error: "ValidationError", model: "type[BaseModel]") -> str:
    """One line about the first fault; a wrong key explains a missing one."""
    return next(faults_of(error, model))


def faults_of(error: "ValidationError", model: "type[BaseModel]") -> Iterator[str]:
    """A line for each fault that pydantic found, wrong keys first."""
    for fault in sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden"):
        yield from _lines(fault, model)


def _lines(fault: "ErrorDetails", model: "type[BaseModel]") -> Iterator[str]:
    where = ".".join(str(part) for part in fault["loc"]) or "file"
    if fault["type"] == "extra_forbidden":
        owner = {"parameters": Parameter, "early_terminate": EarlyTerminate}.get(str(fault["loc"][0]), model)
        yield f"unknown key {where!r}{did_you_mean(str(fault['loc'][-1]), owner.model_fields)}"
    elif fault["type"] == "missing":
        yield f"{where} is missing"
    elif fault["type"] == "value_error":  # ours; about the whole file it is complete, a line for each fault
        for said in str(fault["ctx"]["error"]).splitlines():
            yield f"{where}: {said}" if fault["loc"] and not said.startswith(where) else said
    else:
        yield f"{where}: {fault['msg'].replace('tuple', 'list')}, got {fault['input']!r}"


def refusal(source: str, lines: Sequence[str]) -> ConfigError:
    """One error about all of them: on its line where there is one, else each on a line of its own."""
    lines = [*dict.fromkeys(lines)]
    if len(lines) == 1:
        return ConfigError(f"{source}: {lines[0]}")
    return ConfigError("\n  ".join([f"{source}: {len(lines)} faults", *lines]))
