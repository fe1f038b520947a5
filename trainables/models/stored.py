"""Weights as they lie in a folder: which files hold them, and whether they can be those of its config.

Only the headers of the files are read, so that half a model is said before anything is loaded.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainables.data.hub_models import INDEX
from trainables.models.architecture import read_values
from trainables.models.families import family_of
from trainables.models.families.family import ends_with
from trainables.values.errors import ConfigError

WEIGHTS = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000

Shapes = Mapping[str, tuple[int, ...]]


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, by name; empty where there are none.

    Raises:
        ConfigError: shards that the index names are missing, or it names something else than files beside it.
    """
    if (folder / INDEX).is_file():
        places = read_values(folder / INDEX).get("weight_map")
        named = list(places.values()) if isinstance(places, dict) else []
        if not all(isinstance(name, str) and Path(name).name == name for name in named):
            raise ConfigError(f"BASE_MODEL: {INDEX} in {str(folder)!r} names no files beside it; bring it again")
        names = sorted(set(named))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise ConfigError(
                f"BASE_MODEL: {len(missing)} of {len(names)} shards that {INDEX} names are not in {str(folder)!r} "
                f"(first: {missing[0] if missing else 'none is named'}); bring the folder again"
            )
        return [folder / name for name in names]
    return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []


def stored_shapes(files: list[Path]) -> Shapes:
    """Shape of each tensor in safetensors files, by its name.

    Raises:
        ConfigError: a file is cut off or is none of safetensors' kind.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        shapes |= _shapes_in(path)
    return shapes


def _shapes_in(path: Path) -> Shapes:
    """From a safetensors file's header: its length in 8 bytes, then JSON; byte ranges of the tensors follow it."""
    n_bytes = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError("no header")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if n_bytes < 8 + length + end:
            raise ValueError("cut off")
        return {name: tuple(tensor["shape"]) for name, tensor in header.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigError(
            f"BASE_MODEL: {str(path)!r} ({n_bytes:,} bytes) is cut off or no safetensors file (of a Git LFS pointer, "
            "say); bring it again"
        ) from None


def check_stored(folder: Path) -> None:
    """Hold the weights in a folder against its config, by names and shapes.

    Depth, width, vocabulary and the modules of each block are compared where a family says what they are called;
    trainables.models.base_model.load compares every tensor.

    Raises:
        ConfigError: see `weight_files` and `stored_shapes`; or the weights are of another model than the config.
    """
    values = read_values(folder / "config.json")
    shapes = stored_shapes(weight_files(folder))
    family = family_of(str(values.get("model_type")))
    if family is None or not shapes:
        return
    n_blocks = _first(values, "num_hidden_layers", "n_layer")
    width = _first(values, "hidden_size", "n_embd")
    vocabulary = _first(values, "vocab_size")
    in_blocks = _names_in_blocks(shapes, family.blocks)
    if n_blocks is not None and len(in_blocks) != n_blocks:
        raise _other_model(folder, f"has {n_blocks} blocks, the weights have {len(in_blocks)} of {family.name}'s")
    for block, names in in_blocks.items():
        for target in family.targets:
            if not any(ends_with(name, f"{target}.weight") for name in names):
                raise _other_model(folder, f"is {family.name}'s, the weights have no {target} in block {block}")
    if width is not None and vocabulary is not None and (vocabulary, width) not in shapes.values():
        raise _other_model(folder, f"has an embedding of {vocabulary} x {width}, the weights have none of that size")


def _names_in_blocks(shapes: Shapes, blocks: str) -> dict[int, list[str]]:
    """Names of the tensors in each block, as "...BLOCKS.NUMBER.NAME"."""
    inside: dict[int, list[str]] = {}
    for name in shapes:
        _, found, rest = f".{name}".partition(f".{blocks}.")
        number, _, inner = rest.partition(".")
        if found and number.isdecimal():
            inside.setdefault(int(number), []).append(inner)
    return inside


def _first(values: Mapping[str, object], *names: str) -> int | None:
    """The first of some fields that is a whole number; None where transformers' default holds."""
    return next((value for value in map(values.get, names) if type(value) is int), None)


def _other_model(folder: Path, difference: str) -> ConfigError:
    return ConfigError(
        f"BASE_MODEL: config.json in {str(folder)!r} {difference}; one of them is of another model, bring both again"
    )


LOADING_FAULTS = {
    "missing_keys": "lack {}",
    "mismatched_keys": "have {} in another size",
    "unexpected_keys": "have {}, and the model of its config.json has not",
}
"""What transformers tells of tensors that it left as newly drawn or dropped, and how it is said."""


def refuse_other_weights(source: str, loading: Mapping[str, Any]) -> None:
    """Raise where a tensor of the model was not in its files, which left it newly drawn, or the other way round.

    Args:
        loading: what from_pretrained gives for `output_loading_info`.
    Raises:
        ConfigError: with the first of them.
    """
    for kind, words in LOADING_FAULTS.items():
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in loading.get(kind) or ())
        if names:
            more = f" (and {len(names) - 1} more)" if names[1:] else ""
            raise ConfigError(
                f"BASE_MODEL: the weights of {source} {words.format(repr(names[0]) + more)}; "
                "config.json and weights are of different models, bring both again"
            )
