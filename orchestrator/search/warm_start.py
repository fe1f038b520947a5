"""What an earlier sweep knows of the same space, for the sampler to begin with."""

from pathlib import Path

from orchestrator import settings as settings_file
from orchestrator.analysis.front import is_candidate
from orchestrator.ledger import Ledger
from orchestrator.ledger.rows import Entry
from orchestrator.settings import SweepSettings, sweep_folder
from trainables.config import TrialConfig, Workload
from trainables.errors import ConfigError

SAME = ("base_fingerprint", "data_digest", "compute_dtype")
"""Of the workload: what must be the same for figures to be comparable."""


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
        ConfigError: there is no such sweep, it is this one, or it differs; the message names the keys.
    """
    if settings.warm_start is None:
        return
    if settings.warm_start == settings.name:
        raise ConfigError(f"warm_start: sweep {settings.name!r} cannot start from itself; say resume {settings.name}")
    other = settings_file.load(sweep_folder(settings.warm_start, root))
    _refuse(settings.warm_start, differences(settings, other))


def _refuse(name: str, keys: list[str]) -> None:
    if keys:
        raise ConfigError(f"warm_start: sweep {name!r} is of another space or protocol; different: {', '.join(keys)}")


def entries(settings: SweepSettings, workload: Workload, root: Path) -> list[Entry]:
    """Finished candidates of the sweep named by `warm_start`; none where none is named.

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
    return found


def _is_known(entry: Entry) -> bool:
    trial = entry.result
    if trial.state == "completed":
        return is_candidate(trial) and (trial.config.precision == "16bit" or trial.similarity is not None)
    return trial.origin == "search" and trial.state in ("pruned", "refused", "oom", "diverged")
