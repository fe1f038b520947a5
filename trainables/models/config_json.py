"""A model's sizes from its config.json alone, wherever that is: a file, a folder, the hub. No weights, no PyTorch."""

import json
import os
from pathlib import Path

from trainables import demo
from trainables.cost.shape import Shape
from trainables.data.hub_models import fetch_config
from trainables.models.architecture import quantized_by
from trainables.models.families import MODEL_TYPES, family_of, shape_named
from trainables.values.errors import ConfigError, did_you_mean


def shape_of_model(source: str) -> Shape:
    """The sizes of a base.

    Args:
        source: "demo", a config.json, a folder that has one ("random:" in front of it is ignored), or a hub id, of
            which config.json alone is fetched, and nothing where its sizes are known here.
    Raises:
        ConfigError: there is no such file, or no formula for what is in it.
        Unreachable: the hub does not answer, and the file is not in its cache.
    """
    path = _path(source)
    if path is None:
        shape = shape_named(source)
        if shape is not None:
            return shape
        path = fetch_config(source) / "config.json"
    return _shape_in(path)


def _path(source: str) -> Path | None:
    """The config.json that a source names on this machine; None where it names a repo on the hub."""
    if source == "demo":
        return demo.FOLDER / "config.json"
    name = source.removeprefix("random:")
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        path /= "config.json"
    if path.is_file():
        return path
    if name != source or source.startswith(("/", ".", "~")) or path.suffix == ".json" or path.name == "config.json":
        raise ConfigError(f"model: no config.json at {str(path)!r}; give a model folder, a config.json or a hub id")
    return None


def _shape_in(path: Path) -> Shape:
    """The sizes in a config.json."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ConfigError(f"model: {str(path)!r} is not a JSON object; bring the file again")
    if method := quantized_by(values):
        raise ConfigError(
            f"model: {str(path)!r} is of a base that is quantized already ({method}); give the one it was made from"
        )
    model_type = str(values.get("model_type"))
    family = family_of(model_type)
    if family is None:
        raise ConfigError(f"model: no formula for model_type {model_type!r}{did_you_mean(model_type, MODEL_TYPES)}")
    try:
        shape = family.shape_of(values)
    except KeyError as error:
        raise ConfigError(f"model: {str(path)!r} does not say {error}; bring the file again") from None
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(f"model: {str(path)!r} has a size that cannot be: {error}") from None
    if shape is None:
        raise ConfigError(f"model: no formula for what {str(path)!r} says of a {model_type}: its activation or its MLP")
    return shape
