"""A new sweep from Python: the settings of `qlora-sweep run`, each under the name of its flag."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.api.live import LiveTable
from orchestrator.api.opened import Sweep
from orchestrator.api.published import fault_of, run_published
from orchestrator.driver import base_targets, plan
from orchestrator.settings import SweepSettings, sweep_folder
from search_spaces import Space, as_space, names, parse
from trainables.values.errors import ConfigError, Interrupted, did_you_mean
from trainables.values.spelling import respelled

FIELDS = {"trials": "n_trials", "steps": "max_steps", "objective": "objectives"}
"""Settings whose flag has another name than their field -> the field."""
CHOSEN = ("space", "base_model", "data", "trials", "sampler")
"""What the machine decides where nothing is said, see orchestrator.driver.plan.choose."""


def run(space: str | Path | Mapping[str, Any] | Space | None = None, **settings: Any) -> Sweep:
    """Run a sweep to its end; in a notebook a table shows how far it is.

    What is not said is chosen for this machine: a GPU's sweep, or the embedded demo without one. Call it in the main
    thread: in another, neither an interrupt nor the limit on a chat template that never ends can break anything off.

    Args:
        space: name of a search space, path of a .yaml, or its content.
        settings: of `qlora-sweep run`, named as its flags are: trials, steps, base_model, data, name, device, ...;
            `objective` takes one name or several; a setting that is on unless said otherwise takes False: reuse=False.
    Returns:
        The sweep, opened. After an interrupt it holds what was run by then, and `qlora-sweep resume` goes on with it.
    Raises:
        SweepError: of the kind of the fault, as the command line names it: ConfigError, DataError, ...
    """
    chosen, given = _sorted(settings)
    chosen["space"] = _space(space)
    name, device = given.pop("name", None), given.pop("device", None)
    with _errors_of_arguments():
        asked = plan.choose(name, device, chosen, given)
        plan.need_gpu(asked.device, asked.address)
    asked = base_targets.fetched(asked)
    sweep = Sweep(asked.name, sweep_folder(asked.name))
    with _written_by_this_user_alone():
        notice = plan.demo_notice(asked, {"device": device, **chosen, **given})
        snapshot, _ = run_published(asked, resume=False, display=LiveTable(sweep), notice=notice)
    fault = fault_of(snapshot)
    if fault is not None and not isinstance(fault, Interrupted):
        raise fault
    return sweep


def _space(space: object) -> str | Space | None:
    """A space as the settings take it.

    Raises:
        ConfigError: it is none, or none can be made of it.
    """
    if isinstance(space, Mapping):
        return parse({"name": "space", **as_space(space, "space")}, source="space")
    if isinstance(space, Path):
        return str(space)
    if space is None or isinstance(space, str | Space):
        return space
    raise ConfigError(
        f"space: must be the name of a search space ({', '.join(names())}), the path of a .yaml file, or its content "
        f"as a dict with parameters, got {space!r}"
    )


def _sorted(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the machine may choose, and fields of SweepSettings that were said.

    Raises:
        ConfigError: no setting has this name.
    """
    fields = _arguments()
    chosen: dict[str, Any] = dict.fromkeys(CHOSEN)
    given: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in fields and name != "sampler":
            raise ConfigError(f"no setting {name!r}{did_you_mean(name, [*fields, 'sampler'])}")
        if name in CHOSEN:
            chosen[name] = value
        elif value is not None:
            given[fields[name]] = (value,) if name == "objective" and isinstance(value, str) else value
    return chosen, given


def _arguments() -> dict[str, str]:
    """What each setting is called here -> its field."""
    return {field: field for field in SweepSettings.model_fields if field not in FIELDS.values()} | FIELDS


@contextmanager
def _errors_of_arguments() -> Iterator[None]:
    """What is wrong with a value is said of the argument that it was given as."""
    try:
        yield
    except ConfigError as error:
        error.args = (respelled(str(error), {field: argument for argument, field in _arguments().items()}),)
        raise


@contextmanager
def _written_by_this_user_alone() -> Iterator[None]:
    """As the command line has it: nobody else may write into what is made, or it would not be read again."""
    before = os.umask(0o022)
    os.umask(before | 0o022)
    try:
        yield
    finally:
        os.umask(before)
