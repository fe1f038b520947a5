"""Modules and blocks of a base that stay at 16 bits in a 4-bit trial: names checked, and equal sets one tuple.

Names are those of transformers, as bitsandbytes' `llm_int8_skip_modules` takes them: `model.layers.0` is a block,
`model.layers.0.mlp.down_proj` a linear module of it. They are checked against the base's layout, before it is loaded.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from trainables.values.errors import ConfigError, nearest

if TYPE_CHECKING:
    from trainables.models.layout import Layout


def resolve_kept(names: Iterable[str], layout: "Layout") -> tuple[str, ...]:
    """The names of what is kept, in the order of blocks and of a block's modules; a block of which all is kept is one.

    Raises:
        ConfigError: the base has no such block or linear module; the nearest name is given.
    """
    family = layout.family
    modules_of: dict[str, tuple[str, ...]] = {}  # of each name, the linear modules that it stands for
    blocks: dict[str, tuple[str, ...]] = {}
    for b, targets in enumerate(layout.blocks):
        inside = tuple(family.name_of(b, target) for target in targets)
        modules_of |= {name: (name,) for name in inside}
        blocks[family.name_of(b)] = inside
    modules_of |= blocks
    kept: set[str] = set()
    for name in names:
        if name not in modules_of:
            first, *_, last = modules_of
            raise ConfigError(
                f"keep_16bit: the base has no block or linear module {name!r}{nearest(name, modules_of)} "
                f"(have: modules as {first}, blocks to {last})"
            )
        kept.update(modules_of[name])
    resolved: list[str] = []
    for block, inside in blocks.items():
        if inside and kept.issuperset(inside):
            resolved.append(block)
        else:
            resolved += [name for name in inside if name in kept]
    return tuple(resolved)


def skip_pattern(name: str) -> str:
    """A kept name as transformers is told it: a regular expression that no other block's name begins with.

    Some versions from 5.17 on read "model.layers.1" as the beginning of "model.layers.10", too.

    >>> skip_pattern("model.layers.1"), skip_pattern("model.layers.1.mlp.up_proj")
    ('model.layers.1\\\\.', 'model.layers.1.mlp.up_proj$')
    """
    is_block = name.rpartition(".")[2].isdigit()
    return rf"{name}\." if is_block else f"{name}$"
