"""A sweep's settings and its base: groups of targets resolved, what adapters cover, how a base of no family runs."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from orchestrator.settings import SweepSettings
from trainables.data import hub_models
from trainables.models.architecture import check_architecture
from trainables.models.families import FAMILIES
from trainables.models.kept import resolve_kept
from trainables.models.layout import Coverage, Layout, check_quantizable, coverage, known_layout
from trainables.values.config import TrialConfig
from trainables.values.errors import ConfigError, Unreachable

logger = logging.getLogger(__name__)

GENERIC = {"engine": "eager", "loop": "standard"}
"""How a base of no family runs."""


def fetched(settings: SweepSettings) -> SweepSettings:
    """The settings with their base's config asked from the hub where it is not known on this machine.

    Raises:
        ConfigError: see trainables.data.hub_models.fetch_config, and `suited`.
    """
    if known_layout(settings.base_model) is not None:
        return settings
    with suppress(Unreachable):  # said by trainables.models.inputs.fetch, after what is wrong with the rows
        hub_models.fetch_config(settings.base_model, check=check_architecture)
    return suited(settings)


def suited(settings: SweepSettings) -> SweepSettings:
    """The settings for their base: its own names of modules; a base of no family runs as GENERIC says.

    Unchanged where only the hub could tell what base it is.

    Raises:
        ConfigError: the base has no such modules, or not in all blocks; or NF4 or the engine does not suit it.
    """
    layout = known_layout(settings.base_model)
    if layout is None:
        return settings
    space = settings.space.for_family(layout.family).with_kept(lambda names: resolve_kept(names, layout))
    changed: dict[str, Any] = {"space": space, "keep_16bit": resolve_kept(settings.keep_16bit, layout)}
    is_generic = layout.family not in FAMILIES
    if is_generic:
        changed |= GENERIC
        logger.info(
            f"base {settings.base_model}: no family here describes {layout.family.name!r}, so it runs eagerly, by the "
            "standard loop; memory and time are measured, not predicted"
        )
    settings = settings.model_copy(update=changed)
    for config in _corners(settings):
        if config.precision == "nf4":
            check_quantizable(layout)
        if is_generic and (config.engine, config.loop) != tuple(GENERIC.values()):
            raise ConfigError(
                f"engine and loop are {config.engine} and {config.loop} in space {settings.space.name}, but a base of "
                f"type {layout.family.name!r} runs with {' and '.join(GENERIC.values())} alone"
            )
    list(_coverages(settings, layout))
    return settings


def coverage_lines(settings: SweepSettings) -> list[str]:
    """For each choice of targets, which modules get an adapter, in how many blocks, and their share; one line each."""
    if known_layout(settings.base_model) is None:
        return ["targets: what they cover is said once the base's config.json is here"]
    return [f"targets: {found}" for found in coverages(settings)]


def coverages(settings: SweepSettings) -> list[Coverage]:
    """What each choice of targets covers; empty where only the hub could tell what base it is."""
    layout = known_layout(settings.base_model)
    return [] if layout is None else list(_coverages(settings, layout))


def generic_type(settings: SweepSettings) -> str | None:
    """The type of a base that no family describes; None of any other."""
    layout = known_layout(settings.base_model)
    return layout.family.name if layout is not None and layout.family not in FAMILIES else None


def _coverages(settings: SweepSettings, layout: Layout) -> Iterator[Coverage]:
    for targets in dict.fromkeys(config.targets for config in _corners(settings)):
        yield coverage(layout, targets, allow_partial=settings.allow_partial_targets)


def _corners(settings: SweepSettings) -> Iterator[TrialConfig]:
    """A config for every value, or both ends, of each searched setting, beside the first values of the others."""
    parameters = settings.space.parameters
    first = {name: parameter.samples[0] for name, parameter in parameters.items()}
    yield settings.config(first)
    for name, parameter in parameters.items():
        for value in parameter.samples:
            yield settings.config(first | {name: value})
