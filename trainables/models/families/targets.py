"""Target modules: groups and names resolved for a family, in one order."""

from collections.abc import Iterable, Sequence

from trainables.models.families.family import GROUPS, ModelFamily, ends_with
from trainables.values.errors import ConfigError, did_you_mean


def ordered_targets(targets: Iterable[str], families: Sequence[ModelFamily]) -> tuple[str, ...]:
    """Targets in the order of the family that has them all, else by name, so that equal sets are equal tuples."""
    wanted = set(targets)
    for family in families:
        if wanted <= set(family.targets):
            return tuple(name for name in family.targets if name in wanted)
    return tuple(sorted(wanted))


def resolve_targets(targets: Iterable[str], family: ModelFamily, others: Sequence[ModelFamily] = ()) -> tuple[str, ...]:
    """The modules that groups and names stand for in a family, each once, in its order.

    Args:
        others: families whose names are known: a name of theirs is answered with the group that it belongs to.
    Raises:
        ConfigError: the family has no such group or module, the nearest is named; or a name stands for two modules.
    """
    resolved: set[str] = set()
    for name in targets:
        resolved.update(_modules_of(name, family, others))
    return tuple(name for name in family.targets if name in resolved)


def _modules_of(name: str, family: ModelFamily, others: Sequence[ModelFamily]) -> tuple[str, ...]:
    if family.groups.get(name):
        return family.groups[name]
    matches = tuple(target for target in family.targets if ends_with(target, name))
    if len(matches) == 1:
        return matches
    if matches:
        raise ConfigError(
            f"targets: {name!r} names several modules of {family.name}; did you mean {matches[0]!r}? "
            f"(have: {', '.join(matches)})"
        )
    choices = [*family.targets, *(group for group in GROUPS if family.groups.get(group))]
    for other in others:
        if name in other.targets:
            group = _smallest_group(name, other)
            raise ConfigError(
                f"targets: {name!r} is a module of {other.name}, and the base is of {family.name}; say {group!r}, "
                f"which is {' '.join(family.groups.get(group, family.targets))} here (have: {', '.join(choices)})"
            )
    raise ConfigError(f"targets: {family.name} has no module {name!r}{did_you_mean(str(name), choices)}")


def _smallest_group(name: str, family: ModelFamily) -> str:
    """The first of GROUPS, from the smallest to the largest, that has a target of a family."""
    return next(group for group in GROUPS if name in family.groups[group])
