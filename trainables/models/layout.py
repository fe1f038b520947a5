"""The linear modules of a base's blocks, from its config alone, and how much of them an adapter covers.

peft adapts whatever its target names match and says nothing of the rest: a name that misses half of the blocks trains
half a model. So what is covered is counted before anything is loaded, from the family's formulas, or from the model
on PyTorch's meta device, which has sizes and no weights.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache as cached
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.cost.shape import Shape
from trainables.models import base_model
from trainables.models.architecture import check_architecture, check_dense, read_values
from trainables.models.families import FAMILIES, family_of, family_of_model, generic
from trainables.models.families.family import ModelFamily, ends_with
from trainables.values.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Sizes = tuple[int, int]
"""Inputs and outputs of a linear module."""
NF4_BLOCK = 64
"""Weights that share a scale (Dettmers et al. 2023, arXiv:2305.14314, section 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which linear modules each block of a base has.

    Attributes:
        family: of the base, read off the model itself where none is described here.
        blocks: for each block, sizes of its linear modules by their names among the family's targets.
    """

    family: ModelFamily
    blocks: tuple[Mapping[str, Sizes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What of a base an adapter is put on.

    Attributes:
        targets: the adapted modules.
        n_blocks: blocks of the base.
        n_blocks_with: for each target, how many of them have it.
        share: of the blocks' linear weights, those of adapted modules.
    """

    targets: tuple[str, ...]
    n_blocks: int
    n_blocks_with: Mapping[str, int]
    share: float

    @property
    def missed(self) -> tuple[str, ...]:
        """Targets that some blocks lack."""
        return tuple(name for name in self.targets if self.n_blocks_with[name] < self.n_blocks)

    def __str__(self) -> str:
        """One line for people.

        >>> str(Coverage(targets=("q_proj", "v_proj"), n_blocks=16, n_blocks_with={"q_proj": 16, "v_proj": 16},
        ...     share=0.086))
        'q_proj v_proj in 16 of 16 blocks, 8.6 % of their linear weights'
        """
        fewest = min(self.n_blocks_with.values())
        partly = ", ".join(f"{name} in {self.n_blocks_with[name]}" for name in self.missed)
        return (
            f"{' '.join(self.targets)} in {fewest} of {self.n_blocks} blocks{f' ({partly})' if partly else ''}, "
            f"{100 * self.share:.1f} % of their linear weights"
        )


def layout_of_shape(family: ModelFamily, shape: Shape) -> Layout:
    """The Layout of a base whose blocks are all of one shape."""
    return Layout(family=family, blocks=(shape.modules,) * shape.n_layer)


@cached
def layout_in(folder: Path) -> Layout:
    """The Layout of the base in a folder, from its config.json.

    Raises:
        ConfigError: see trainables.models.architecture.check_architecture; or a size cannot be; or transformers has no
            causal language model of its type, or that has no list of blocks.
    """
    check_architecture(folder)
    family = family_of(str(read_values(folder / "config.json").get("model_type")))
    shape = _shape(family, folder) if family else None
    return _layout_on_meta_device(folder) if family is None or shape is None else layout_of_shape(family, shape)


def _shape(family: ModelFamily, folder: Path) -> Shape | None:
    """The sizes by the family's formulas; None where they do not fit, or transformers' defaults hold.

    Raises:
        ConfigError: a size cannot be.
    """
    path = folder / "config.json"
    try:
        return family.shape_of(read_values(path))
    except KeyError:
        return None
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"BASE_MODEL: {str(path)!r} has a size that cannot be: {error}; bring it again") from None


def _layout_on_meta_device(folder: Path) -> Layout:
    model = _without_weights(folder)
    check_dense(model.config.to_dict(), folder)
    family = family_of_model(model)
    blocks = []
    for block in family.blocks_of(model):
        modules = family.modules_in(block).items()
        blocks.append({name: generic.sizes_of(module) for name, module in modules})
    return Layout(family=family, blocks=tuple(blocks))


def _without_weights(folder: Path) -> "PreTrainedModel":
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with init_empty_weights():
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # each architecture fails in its own way
        model_type = read_values(folder / "config.json").get("model_type")
        if "Unrecognized configuration" in str(error):
            raise ConfigError(f"BASE_MODEL: transformers has no causal language model of type {model_type!r}") from None
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(
            f"BASE_MODEL: transformers builds no {model_type!r} from {str(folder / 'config.json')!r}: {reason}"
        ) from None


def known_layout(source: str) -> Layout | None:
    """The Layout of a base from its local folder, the hub's cache or a well-known name; None if only the hub knows it.

    Raises:
        ConfigError: see `layout_in`.
    """
    folder = base_model.config_folder(source)
    if folder is not None:
        return layout_in(folder)
    for family in FAMILIES:
        if (last_part := source.rsplit("/", 1)[-1]) in family.hub_shapes:
            return layout_of_shape(family, family.hub_shapes[last_part])
    return None


def known_family(source: str) -> ModelFamily | None:
    """The family of a base, from where `known_layout` has it."""
    folder = base_model.config_folder(source)
    family = family_of(str(read_values(folder / "config.json").get("model_type"))) if folder else None
    if family is None and (layout := known_layout(source)):
        return layout.family
    return family


def coverage(layout: Layout, targets: Iterable[str], *, allow_partial: bool = False) -> Coverage:
    """What an adapter on these targets covers, with targets matched as peft does: by the end of a module's name.

    Raises:
        ConfigError: a target is in no block, or without `allow_partial` not in all of them.
    """
    targets = tuple(targets)
    n_blocks_with, n_adapted, n_weights = dict.fromkeys(targets, 0), 0, 0
    for block in layout.blocks:
        for target in targets:
            n_blocks_with[target] += any(ends_with(name, target) for name in block)
        for name, (inputs, outputs) in block.items():
            n_weights += inputs * outputs
            n_adapted += inputs * outputs * any(ends_with(name, target) for target in targets)
    found = Coverage(
        targets=targets, n_blocks=len(layout.blocks), n_blocks_with=n_blocks_with, share=n_adapted / n_weights
    )
    for target, n_with in n_blocks_with.items():
        if n_with == 0 or (n_with < found.n_blocks and not allow_partial):
            advice = "name modules that every block has" if not n_with else "or allow it with --allow-partial-targets"
            raise ConfigError(f"targets: {target!r} is in {n_with} of {found.n_blocks} blocks; {advice}")
    return found


def check_quantizable(layout: Layout) -> None:
    """Refuse NF4 where scales would be shared by weights of two rows, which bitsandbytes' kernels do not know.

    Raises:
        ConfigError: the inputs of a module are no multiple of NF4_BLOCK.
    """
    for block in layout.blocks:
        for name, (inputs, outputs) in block.items():
            if inputs % NF4_BLOCK:
                raise ConfigError(
                    f"precision: nf4 shares a scale between {NF4_BLOCK} weights, and {name} ({inputs} x {outputs}) has "
                    f"{inputs} inputs, no multiple of {NF4_BLOCK}; this base can be tuned at 16bit"
                )
