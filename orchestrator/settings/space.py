"""The search space that was asked for."""

from typing import get_args

import search_spaces
from trainables.values.errors import ConfigError, did_you_mean


def space_named(name: str | search_spaces.Space, sampler: str | None = None) -> search_spaces.Space:
    """A search space by its name or path, or itself, with another sampler than its own where one is said.

    Raises:
        ConfigError: there is no such space or sampler, or the space does not go with it.
    """
    space = name if isinstance(name, search_spaces.Space) else search_spaces.load(name)
    if sampler is None:
        return space
    methods = get_args(search_spaces.Method)
    if sampler not in methods:
        raise ConfigError(f"sampler: no sampler {sampler!r}{did_you_mean(sampler, methods)}")
    return search_spaces.parse(space.model_dump() | {"method": sampler}, source="sampler")
