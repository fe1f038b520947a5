"""Declared search spaces: YAML in, checked `Space` out.

A space names the settings to search (`parameters`) and those that stay (`fixed`), in keys that a
W&B sweep file also uses. Beside the fields of `TrialConfig`, a space may search `alpha_ratio`,
alpha / rank: at a fixed alpha every change of the rank is also a change of the scale.
"""

import itertools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from search_spaces.faults import faults_of, first_fault, refusal
from search_spaces.parts import EarlyTerminate, Frozen, Parameter, Scalar, config_of
from search_spaces.wandb import as_space
from trainables.models.families import ModelFamily, resolve_targets
from trainables.values.config import TrialConfig
from trainables.values.errors import ConfigError, did_you_mean

__all__ = [
    "EarlyTerminate",
    "Frozen",
    "Parameter",
    "Scalar",
    "Space",
    "as_space",
    "first_fault",
    "load",
    "names",
    "parse",
]

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
Method = Literal["tpe", "nsga2", "gp", "random", "grid", "qmc"]
NAMES = (*TrialConfig.__dataclass_fields__, "alpha_ratio")
SOUND: Mapping[str, Any] = {"precision": "nf4", "rank": 1, "alpha": 1, "engine": "eager"}
"""Of a trial with which any value of another setting goes."""


class Space(Frozen):
    """A checked search space.

    Attributes:
        name: of the file, without suffix.
        description: one line for people.
        method: Optuna's sampler, which asks without end; tpe and gp begin around the middle of every range; or "grid",
            which runs each point once.
        parameters: searched settings by name.
        fixed: settings of every trial; what is named nowhere has TrialConfig's default.
        early_terminate: pruning.
    """

    name: str
    description: str = ""
    method: Method = "tpe"
    parameters: dict[str, Parameter]
    fixed: dict[str, Any] = Field(default_factory=dict)
    early_terminate: EarlyTerminate = EarlyTerminate()

    @model_validator(mode="before")
    @classmethod
    def _says_its_rule(cls, values: Any) -> Any:
        if isinstance(values, dict) and "early_terminate" not in values:
            logger.info("early_terminate: the space names no rule; hypervolume stops trials ({type: none} keeps all)")
        return values

    @model_validator(mode="after")
    def _check(self) -> "Space":
        found = [*self._unfit_names(), *self._unfit_values()]
        if not found:
            found = [*self._unfit_together()]
        if found:
            raise ConfigError("\n".join(dict.fromkeys(found)))
        return self

    def _unfit_names(self) -> Iterator[str]:
        """What is wrong with which settings are named."""
        named = [*self.parameters, *self.fixed]
        for name in named:
            if name not in NAMES:
                yield f"no trial setting {name!r}{did_you_mean(name, NAMES)}"
        for name in self.parameters:
            if name in self.fixed:
                yield f"{name} is both in parameters and fixed"
        if ("alpha" in named) == ("alpha_ratio" in named):
            yield "give one of alpha and alpha_ratio (alpha / rank)"
        if self.method == "grid" and (ranges := [n for n, p in self.parameters.items() if p.values is None]):
            yield f"method grid needs values, {ranges[0]} has a range"

    def _unfit_values(self) -> Iterator[str]:
        """Values that no trial can have, whatever its other settings are."""
        for name, values in self._values():
            for value in values if name in NAMES else ():
                try:
                    config_of(SOUND | {name: value})
                except ConfigError as error:
                    yield str(error)

    def _values(self) -> Iterator[tuple[str, Sequence[Any]]]:
        """Each setting that is named, with the values that show whether all of its are valid."""
        for name, value in self.fixed.items():
            yield name, (value,)
        for name, parameter in self.parameters.items():
            yield name, parameter.samples

    def _unfit_together(self) -> Iterator[str]:
        """Settings that do not go together, and values that stand for the same trial."""
        try:
            first = self.first_point
            at_4bit = self.config(first).precision == "nf4"  # made also where no parameter is searched
            if not at_4bit and "keep_16bit" in (*self.parameters, *self.fixed):
                yield "keep_16bit names modules of a 4-bit base, and every trial is at 16 bits; leave it out"
            for name, parameter in self.parameters.items():
                configs = {self.config(first | {name: value}) for value in parameter.samples}
                if len(configs) < len(parameter.samples):
                    yield f"{name}: values must be distinct, got {list(parameter.samples)}"
        except ConfigError as error:
            yield str(error)

    @property
    def first_point(self) -> dict[str, Scalar]:
        """The first value of each searched setting, at 4 bits where that can be: some settings count there alone."""
        point = {name: parameter.samples[0] for name, parameter in self.parameters.items()}
        if "precision" in self.parameters and "nf4" in self.parameters["precision"].samples:
            point["precision"] = "nf4"
        return point

    def config(self, params: Mapping[str, Scalar], **overrides: Any) -> TrialConfig:
        """The trial that `params` (one scalar for each parameter) stands for.

        Args:
            overrides: settings of the sweep that go before the space's own, e.g. max_steps.
        Raises:
            ConfigError: a value is out of range.
        """
        return config_of({**self.fixed, **params, **overrides})

    def with_kept(self, resolve: Callable[[list[str]], tuple[str, ...]]) -> "Space":
        """The space with names in `keep_16bit` put by `resolve`, see trainables.models.kept."""
        changed: dict[str, Any] = {}
        if "keep_16bit" in self.fixed:
            kept = self.config(self.first_point).keep_16bit
            changed = {"fixed": self.fixed | {"keep_16bit": list(resolve(list(kept)))}}
        elif "keep_16bit" in self.parameters:
            values = []
            for value in self.parameters["keep_16bit"].choices or ():
                values.append(list(resolve(list(filter(None, str(value).split("+"))))))
            changed = {"parameters": self.model_dump()["parameters"] | {"keep_16bit": {"values": values}}}
        return parse(self.model_dump() | changed, source=f"SPACE {self.name}") if changed else self

    def for_family(self, family: ModelFamily) -> "Space":
        """The space for bases of one family: groups of targets become the modules that they stand for.

        A space that names no targets gets TrialConfig's, or where a family has none of those, its group "qkv".

        Raises:
            ConfigError: the family has no such group or module.
        """

        def modules(value: Any) -> Any:
            names = value.split("+") if isinstance(value, str) else value
            return value if set(names) <= set(family.targets) else list(resolve_targets(names, family))

        source = f"SPACE {self.name}"
        try:
            searched, fixed = self.parameters.get("targets"), self.fixed.get("targets")
            if searched is not None:
                values: list[Any] = []
                for value in map(modules, searched.values or ()):
                    values += [value] if value not in values else []
                changed = {"parameters": self.model_dump()["parameters"] | {"targets": {"values": values}}}
            elif fixed is not None:
                changed = {"fixed": self.fixed | {"targets": modules(fixed)}}
            elif set(TrialConfig.__dataclass_fields__["targets"].default) <= set(family.targets):
                return self
            else:
                changed = {"fixed": self.fixed | {"targets": list(resolve_targets(["qkv"], family))}}
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
        return parse(self.model_dump() | changed, source=source)

    def grid(self) -> Iterator[dict[str, Scalar]]:
        """Every point of a space whose parameters all have values, first parameter slowest."""
        for point in itertools.product(*(parameter.choices or () for parameter in self.parameters.values())):
            yield dict(zip(self.parameters, point, strict=True))

    @property
    def n_points(self) -> int | None:
        """Points of the grid; None where a parameter has a range."""
        sizes = [len(p.values) if p.values is not None else None for p in self.parameters.values()]
        if None in sizes:
            return None
        product = 1
        for size in sizes:
            product *= size or 0
        return product


class Loader(yaml.SafeLoader):
    """The safe loader, to which 2e-4 is a number, as it is to every reader (YAML 1.1 wants 2.0e-4)."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def names() -> list[str]:
    """Spaces that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> Space:
    """Read a space by name ("pareto") or by path ("my/space.yaml").

    Raises:
        ConfigError: unknown name (nearest one offered), unreadable file, unknown key, or a value out of range.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if path.parent == FOLDER and path.stem not in names():
        raise ConfigError(
            f"SPACE: no search space {name!r}{did_you_mean(name, names())}; or give a path to a .yaml file"
        )
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except FileNotFoundError:
        raise ConfigError(f"SPACE: no file {name!r}") from None
    except Exception as error:  # PyYAML lets ValueError, KeyError and more out on bad scalars, as 2001-02-30
        raise ConfigError(f"SPACE: {name} is not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"SPACE: {name} must hold keys {', '.join(Space.model_fields)}")
    source = f"SPACE {name}"
    return parse(as_space(values, source) | {"name": path.stem}, source=source)


def parse(values: Mapping[str, Any], *, source: str) -> Space:
    """Check a space given as plain values.

    Raises:
        ConfigError: see `load`.
    """
    try:
        return Space.model_validate(values)
    except ValidationError as error:
        found = [*faults_of(error, Space), *_seen_already(values)]
        raise refusal(source, found) from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _seen_already(values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with single settings of a space that other faults keep from being looked at whole."""
    for part in ("parameters", "fixed"):
        named = values.get(part)
        for name, said in named.items() if isinstance(named, Mapping) else ():
            if name not in NAMES:
                yield f"no trial setting {name!r}{did_you_mean(str(name), NAMES)}"
            elif part == "fixed":
                yield from _unfit(name, said)
            elif isinstance(said, Mapping):
                yield from _unfit_choices(name, said)


def _unfit_choices(name: str, said: Mapping[str, Any]) -> Iterator[str]:
    ends = [said[end] for end in ("min", "max") if isinstance(said.get(end), int | float)]
    if len(ends) == 2 and not ends[0] < ends[1]:
        yield f"parameters.{name}: min must be under max, got {float(ends[0])!r} and {float(ends[1])!r}"
    choices = said.get("values")
    for value in choices if isinstance(choices, list | tuple) else ():
        yield from _unfit(name, value)


def _unfit(name: str, value: Any) -> Iterator[str]:
    """What is wrong with a value, whatever a trial's other settings are; what is of no kind that a setting has, others
    say."""
    try:
        config_of(SOUND | {name: tuple(value) if isinstance(value, list) else value})
    except ConfigError as error:
        yield str(error)
    except (TypeError, ValueError):
        return
