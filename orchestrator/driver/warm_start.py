"""What an earlier sweep knows of the same space, for the sampler to begin with."""

import logging
from pathlib import Path

from orchestrator import settings as settings_file
from orchestrator.analysis.front import is_candidate
from orchestrator.ledger import Ledger
from orchestrator.ledger.rows import Entry
from orchestrator.objectives import OBJECTIVES
from orchestrator.security.folder_access import refuse_shared
from orchestrator.settings import SweepSettings, sweep_folder
from trainables.values.config import TrialConfig, Workload
from trainables.values.errors import ConfigError

logger = logging.getLogger(__name__)

SAME = ("base_fingerprint", "data_digest", "compute_dtype")
"""Of the workload: what must be the same for figures to be comparable."""
TOO_LARGE = ("refused", "oom")
"""Ends that say something about the memory of the device alone."""


def differences(settings: SweepSettings, other: SweepSettings) -> list[str]:
    """Keys of the space, and of what every trial shares, in which two sweeps differ; the seed is free."""
    mine, theirs = settings.space, other.space
    names = sorted({*mine.parameters, *theirs.parameters})
    found = [f"parameters.{name}" for name in names if mine.parameters.get(name) != theirs.parameters.get(name)]
    if not found:
        first = {name: parameter.samples[0] for name, parameter in mine.parameters.items()}
        ours, others = settings.config(first), other.config(first)
        fields = [name for name in TrialConfig.__dataclass_fields__ if name != "seed"]
        found += [name for name in fields if getattr(ours, name) != getattr(others, name)]
    if settings.device != other.device:
        found.append("device")
    return found


def check(settings: SweepSettings, root: Path) -> None:
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
    other = settings_file.load(folder)
    _refuse(settings.warm_start, differences(settings, other))


def _refuse(name: str, keys: list[str]) -> None:
    if keys:
        raise ConfigError(f"warm_start: sweep {name!r} is of another space or protocol; different: {', '.join(keys)}")


def entries(settings: SweepSettings, workload: Workload, root: Path) -> list[Entry]:
    """Finished candidates of the sweep named by `warm_start`; none where none is named.

    What another kind of device decided is left out, and that is said. Workers are asked for their kind only where there
    is something to learn; needs a connected Ray.

    Raises:
        ConfigError: as `check`, and where base, data, arithmetic or protocol differ.
    """
    if settings.warm_start is None:
        return []
    check(settings, root)
    ledger = Ledger(sweep_folder(settings.warm_start, root) / "ledger.db", read_only=True)
    try:
        theirs = ledger.workload()
        found = [entry for entry in ledger.entries() if _is_known(entry)]
    finally:
        ledger.close()
    if theirs is None:
        return []
    keys = [name for name in SAME if getattr(theirs, name) != getattr(workload, name)]
    if not keys and any(theirs.key(entry.result.config) != entry.result.key for entry in found):
        keys = ["protocol version"]
    _refuse(settings.warm_start, keys)
    return _of_this_device(found, settings) if found else []


def _of_this_device(found: list[Entry], settings: SweepSettings) -> list[Entry]:
    """Without entries of other kinds of device where memory or time is searched, and without what was too large for
    another one. A refused trial ran nowhere: it is of the kinds that the others ran on."""
    from orchestrator.driver.prepare import ask_device  # imports Ray, which a dry run need not wait for

    here, there = ask_device(settings).names, {_device_of(entry) for entry in found} - {None}
    if there <= here:
        return found
    is_searched = any(OBJECTIVES[name].source == "cost" for name in settings.objectives)
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


def _device_of(entry: Entry) -> str | None:
    trial = entry.result
    return trial.cost.device if trial.cost else trial.environment.get("device")


def _is_known(entry: Entry) -> bool:
    trial = entry.result
    if trial.state == "completed":
        return is_candidate(trial) and (trial.config.precision == "16bit" or trial.similarity is not None)
    return trial.origin == "search" and trial.state in ("pruned", "refused", "oom", "diverged")
