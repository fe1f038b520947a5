"""Arguments and options of the commands; those of `run` are made from the fields of the settings."""

import glob
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, Signature, signature
from itertools import starmap
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from orchestrator.analysis.snapshot import newest
from orchestrator.cli.lines import with_flags
from orchestrator.settings import ROOT, SweepSettings
from trainables.values.errors import Interrupted, SweepError

FIELDS = SweepSettings.model_fields


def sweep_names(begun: str) -> list[str]:
    """Sweeps here whose name begins so: what a shell completes."""
    return sorted(path.parent.name for path in (ROOT / "sweeps").glob(f"{glob.escape(begun)}*/settings.json"))


Name = Annotated[str, typer.Argument(help="name of the sweep", autocompletion=sweep_names)]
NameOrNewest = Annotated[
    str | None, typer.Argument(help="name of the sweep; default: the newest", autocompletion=sweep_names)
]
MaxMemory = Annotated[str | None, typer.Option(help="only trials that need at most so much peak memory, e.g. 2GiB")]
Knee = Annotated[bool, typer.Option("--knee", help="the front's knee instead")]
BaseModelOption = Annotated[str | None, typer.Option(help=FIELDS["base_model"].description)]
DataOption = Annotated[str | None, typer.Option(help=FIELDS["data"].description)]
DataSplitOption = Annotated[str | None, typer.Option(help=FIELDS["data_split"].description)]
ColumnsOption = Annotated[str | None, typer.Option(help=FIELDS["columns"].description)]
DeviceOption = Annotated[str | None, typer.Option(help=FIELDS["device"].description)]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]


def named(name: str | None) -> str:
    """The sweep that was named, or the newest.

    Raises:
        ConfigError: none was, and there is none.
    """
    return name or newest(ROOT)


FLAGS = {
    "n_trials": ("--trials",),
    "max_steps": ("--steps",),
    "objectives": ("--objective",),
    "finalist_seeds": ("--finalist-seeds", "--repeats"),
}
"""Of fields whose flag has another name, or two."""
WITHOUT_FLAG = frozenset({"baseline_seeds"})


def with_settings(work: Callable[..., None], fields: Mapping[str, FieldInfo] = FIELDS) -> Callable[..., None]:
    """Give a command one option for each field, in place of its first parameter.

    That parameter is handed the values by field that were given; the others are left to the machine and the defaults.
    A flag without a value turns its field's default round: `--no-reuse` sets `reuse` to False. What is wrong with a
    value is said of its flag, see `in_flags`.
    """
    shown = {name: field for name, field in fields.items() if name not in WITHOUT_FLAG}
    options = [*starmap(_option, shown.items())]
    _, *own = signature(work).parameters.values()

    @wraps(work)
    def command(**values: Any) -> None:
        given = {}
        for name, field in shown.items():
            value = values.pop(name)
            if value is not None:
                given[name] = not field.default if field.annotation is bool else value
        work(given, **values)

    required_first = sorted([*options, *own], key=lambda parameter: parameter.default is not Parameter.empty)
    command.__signature__ = Signature(required_first)  # type: ignore[attr-defined]
    return in_flags(command)


def in_flags(command: Callable[..., None]) -> Callable[..., None]:
    """A command that says what is wrong with a value of the flag that was typed for it."""
    flags = {parameter.name: _typed(parameter) for parameter in signature(command).parameters.values()}

    @wraps(command)
    def said(*arguments: Any, **values: Any) -> None:
        try:
            command(*arguments, **values)
        except Interrupted:
            raise
        except SweepError as error:
            error.args = (with_flags(str(error), flags),)
            raise

    return said


def _typed(parameter: Parameter) -> str:
    """What a user types for a parameter: a flag, or the name that --help gives to an argument."""
    kind = parameter.annotation.__metadata__[0] if get_origin(parameter.annotation) is Annotated else None
    if isinstance(kind, typer.models.ArgumentInfo):
        return parameter.name.upper()
    return FLAGS.get(parameter.name, (f"--{parameter.name.replace('_', '-')}",))[0]


def _option(name: str, field: FieldInfo) -> Parameter:
    flag, description = name.replace("_", "-"), field.description
    if field.default is True:
        flag, description = f"no-{flag}", f"do not {description}"
    annotation = Annotated[_kind(field) | None, typer.Option(*FLAGS.get(name, (f"--{flag}",)), help=description)]
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation)


def _kind(field: FieldInfo) -> Any:
    """What the command line reads; of all but numbers and flags it is text, which the settings check themselves."""
    allowed = {field.annotation, *get_args(field.annotation)}
    for kind in (bool, int, float):
        if kind in allowed:
            return kind
    return list[str] if get_origin(field.annotation) is tuple else str
