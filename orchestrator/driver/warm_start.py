"""What an earlier sweep knows of the same space, for the sampler to begin with."""

import logging
from collections.abc import Iterable, Set
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.analysis.front import is_candidate
from orchestrator.ledger import Ledger
from orchestrator.pruning.learning_curves import is_cost
from orchestrator.security.folder_access import refuse_shared
from orchestrator.settings import stored, sweep_folder
from trainables.values.config import TrialConfig
from trainables.values.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.ledger.rows import Entry
    from orchestrator.settings import SweepSettings
    from trainables.values.workload import Workload

logger = logging.getLogger(__name__)

SAME = ("base_fingerprint", "data_digest", "compute_dtype")
"""Of the workload: what must be the same for figures to be comparable."""
TOO_LARGE = ("refused", "oom")
"""Ends that say something about the memory of the device alone."""


def differences(settings: "SweepSettings", other: "SweepSettings") -> list[str]:
    """Keys of the space, and of what every trial shares, in which two sweeps differ; the seed is free."""
    mine, theirs = settings.space, other.space
    keys = []
    for name in sorted({*mine.parameters, *theirs.parameters}):
        if mine.parameters.get(name) != theirs.parameters.get(name):
            keys.append(f"parameters.{name}")
    if not keys:
        first = {name: parameter.samples[0] for name, parameter in mine.parameters.items()}
        ours, others = settings.config(first), replace(other.config(first), seed=settings.config(first).seed)
        keys = _unlike(ours, others, TrialConfig.__dataclass_fields__)
    if settings.device != other.device:
        keys.append("device")
    return keys


def _unlike(one: object, other: object, names: Iterable[str]) -> list[str]:
    """Attributes in which two values differ."""
    return [name for name in names if getattr(one, name) != getattr(other, name)]


def check(settings: "SweepSettings", root: Path) -> None:
    """Refuse a warm start that is not over the same space, before anything is fetched.

    Raises:
        ConfigError: there is no such sweep, it is this one, others may have written into it, or it differs; the
            message names the keys.
    """
    if settings.warm_start is None:
        return
    if settings.warm_start == settings.name:
        raise ConfigError(f"warm_start: sweep {settings.name!r} cannot start from itself; say resume {settings.name}")
    folder = sweep_folder(settings.warm_start, root)
    refuse_shared(folder, root, field="warm_start")
    other = stored.load(folder)
    _refuse(settings.warm_start, differences(settings, other))


def _refuse(name: str, keys: list[str]) -> None:
    if keys:
        raise ConfigError(f"warm_start: sweep {name!r} is of another space or protocol; different: {', '.join(keys)}")


def entries(settings: "SweepSettings", workload: "Workload", root: Path, devices: Set[str]) -> "list[Entry]":
    """Finished candidates of the sweep named by `warm_start`; none where none is named.

    What another kind of device decided is left out, and that is said.

    Args:
        devices: kinds that this sweep runs on.
    Raises:
        ConfigError: as `check`, and where base, data, arithmetic or protocol differ.
    """
    if settings.warm_start is None:
        return []
    check(settings, root)
    with closing(Ledger(sweep_folder(settings.warm_start, root) / "ledger.db", read_only=True)) as ledger:
        theirs = ledger.workload()
        found = list(filter(_is_known, ledger.entries()))
    if theirs is None:
        return []
    keys = _unlike(theirs, workload, SAME)
    if not keys and any(theirs.key(entry.result.config) != entry.result.key for entry in found):
        keys = ["protocol version"]
    _refuse(settings.warm_start, keys)
    return _of_devices(devices, found, settings) if found else []


def _of_devices(here: Set[str], found: "list[Entry]", settings: "SweepSettings") -> "list[Entry]":
    """Without entries of other kinds of device where memory or time is searched, and without what was too large for
    another one. A refused trial ran nowhere: it is of the kinds that the others ran on."""
    there = set(map(_device_of, found)) - {None}
    if there <= here:
        return found
    is_searched = any(map(is_cost, settings.objectives))
    kept = []
    for entry in found:
        is_decided_by_device = is_searched or entry.result.state in TOO_LARGE
        if not is_decided_by_device or _device_of(entry) in here:
            kept.append(entry)
    if len(kept) < len(found):
        logger.warning(
            "warm_start: nothing is learned from %d of %d trials of %r: their memory and time are those of %s, this "
            "sweep runs on %s",
            len(found) - len(kept),
            len(found),
            settings.warm_start,
            ", ".join(sorted(there - here)),
            ", ".join(sorted(here)),
        )
    return kept


def _device_of(entry: "Entry") -> str | None:
    trial = entry.result
    return trial.cost.device if trial.cost else trial.environment.get("device")


def _is_known(entry: "Entry") -> bool:
    trial = entry.result
    if trial.state == "completed":
        return is_candidate(trial) and (trial.config.precision == "16bit" or trial.similarity is not None)
    return trial.origin == "search" and trial.state in ("pruned", "refused", "oom", "diverged")
