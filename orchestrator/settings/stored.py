"""Settings as a sweep keeps them: settings.json in its folder, written once, and what was edited in it since."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.security.addresses import refuse_secrets
from orchestrator.security.folder_access import refuse_shared
from orchestrator.settings import RECORDED, SweepSettings, sweep_folder
from orchestrator.settings.command import command
from search_spaces import first_fault
from trainables.values.errors import ConfigError, did_you_mean
from trainables.values.files import write_whole

ADDRESS_FILE = "tracking-address"
"""Of MLflow, in the sweep's folder, for its owner alone; kept out of settings.json, which reports and MLflow show."""

OLDER_NAMES = {"repeats": "finalist_seeds", "reseeds": "baseline_seeds"}
"""Of fields in a settings.json from before."""

ASKED = "settings"
"""Fact of a ledger: the settings that its sweep began with, as JSON text, which keeps the order of parameters."""


def save(settings: SweepSettings, folder: Path) -> None:
    """Write settings.json, once; a sweep's settings never change."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "settings.json", settings.model_dump_json(indent=2) + "\n")
    if settings.tracking_uri is not None:
        path = folder / ADDRESS_FILE
        path.touch(mode=0o600)
        path.chmod(0o600)  # one that was there
        path.write_text(settings.tracking_uri, encoding="utf-8")


def edits(settings: SweepSettings, began: str | None) -> Iterator[tuple[str, Any, Any]]:
    """Fields in which settings are not what they were at the sweep's start.

    Args:
        began: the fact ASKED, of this version of the program or an earlier one; None in older ledgers.
    Yields:
        Name, and the value then and now; of a search space each of its parts by itself.
    """
    if began is None:
        return
    now, then = json.loads(settings.model_dump_json()), json.loads(of_json(began).model_dump_json())
    for name in now:
        parts = [(name, then[name], now[name])]
        if name == "space":
            parts = [(f"space.{part}", then["space"][part], value) for part, value in now["space"].items()]
        for part, before, value in parts:
            if json.dumps(before) != json.dumps(value):  # the order of a space's parameters counts too
                yield part, before, value


def of_json(text: str | bytes) -> SweepSettings:
    """Settings from the content of a settings.json, of this version or of one that had other names for two fields.

    Raises:
        ValidationError: it is damaged.
    """
    try:
        values = json.loads(text)
        renamed = {OLDER_NAMES.get(name, name): value for name, value in values.items()}
    except (ValueError, AttributeError):
        return SweepSettings.model_validate_json(text)  # which says what is wrong
    return SweepSettings.model_validate_json(json.dumps(renamed))


def load(folder: Path, others: Iterable[str] = (), *, offers: bool = True) -> SweepSettings:
    """Read settings.json: what every command begins with that reads a sweep.

    Args:
        others: names of sweeps elsewhere, for who misspelt one.
        offers: the nearest name; not to what deletes.
    Raises:
        ConfigError: there is no such sweep, others may have written into its folder, or the file is damaged.
    """
    if not (folder / "settings.json").is_file():
        raise _no_sweep(folder, others, offers=offers)
    refuse_shared(folder, folder.parents[1])
    return read(folder)


def folder_of(name: str, root: Path) -> Path:
    """Where a sweep lies that is only to be read: under `sweeps/`, else under `recorded/`, which git keeps.

    Raises:
        ConfigError: there is no such sweep, or others may have written into its folder under `sweeps/`.
    """
    folder, kept = sweep_folder(name, root), root / RECORDED
    recorded = {path.parent.name for path in kept.glob("*/settings.json")}
    if name in recorded and not (folder / "settings.json").is_file():
        return kept / name
    load(folder, others=recorded)
    return folder


def is_recorded(folder: Path) -> bool:
    """Whether git keeps a sweep's folder, into which nothing is written."""
    return folder.parent.name == RECORDED


def read(folder: Path) -> SweepSettings:
    """As `load`, of any folder that the caller named; who could write to it is not asked.

    Raises:
        ConfigError: there is no such sweep, or the file is damaged.
    """
    path = folder / "settings.json"
    if not path.is_file():
        raise _no_sweep(folder)
    try:
        settings = of_json(path.read_bytes())
        if (folder / ADDRESS_FILE).is_file():
            address = (folder / ADDRESS_FILE).read_text(encoding="utf-8")
            settings = settings.model_copy(update={"tracking_uri": refuse_secrets("tracking_uri", address)})
        return settings
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_fault(error, SweepSettings)}") from None


def _no_sweep(folder: Path, others: Iterable[str] = (), *, offers: bool = True) -> ConfigError:
    if (folder.parent.parent / RECORDED / folder.name / "settings.json").is_file():
        return ConfigError(
            f"NAME: sweep {folder.name!r} is a recorded one, which can only be read: status, best, report, answers, "
            "card"
        )
    names = {path.parent.name for path in folder.parent.glob("*/settings.json")}.union(others)
    if not names:
        return ConfigError(f"NAME: no sweep {folder.name!r}, as there is none here yet; run one: {command()} run")
    others_here = did_you_mean(folder.name, names) if offers else f"; those that are here: {command()} list"
    return ConfigError(f"NAME: no sweep {folder.name!r}{others_here}")
