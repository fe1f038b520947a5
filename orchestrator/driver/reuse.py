"""Results of other sweeps' ledgers: a trial known there, on the same kind of device and under the same versions, is
not run again."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.driver.prepare import ask_device
from orchestrator.ledger import Ledger
from orchestrator.ledger.rows import Entry
from orchestrator.security.folder_access import refuse_shared
from orchestrator.settings import SweepSettings
from orchestrator.workers import adapter_store
from trainables.cost.device import versions
from trainables.values.config import Workload
from trainables.values.errors import ConfigError, LedgerDamaged

logger = logging.getLogger(__name__)

REUSED = "reused"
"""Fact: key of each reused trial -> the sweep that ran it."""
DECISIVE = ("torch", "transformers", "peft", "bitsandbytes")
"""Packages whose versions decide a trial's losses, memory and time. Those of the driver are its workers' too, see
orchestrator.cluster.nodes.check_versions; as there, the build behind a "+" does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedTrial:
    """A completed trial of another sweep.

    Attributes:
        sweep: that ran it.
        adapters: folder that holds its adapter.
    """

    entry: Entry
    sweep: str
    adapters: Path


def cached_trials(root: Path, own: str, workload: Workload, settings: SweepSettings) -> dict[str, CachedTrial]:
    """Completed trials of all other sweeps under `root` on devices and versions of this one, by key; of equal ones the
    oldest sweep's.

    A key stands for everything that decides the outcome (see Workload.key), device and versions apart. What is passed
    over for another reason than its key is said. Workers are asked for the devices' names only where there is something
    to reuse; needs a connected Ray.
    """
    found: dict[str, CachedTrial] = {}
    folders = [path.parent for path in (root / "sweeps").glob("*/ledger.db") if path.parent.name != own]
    here = None if settings.reuse_across_versions else _decisive(versions(DECISIVE))
    for folder in sorted(folders, key=lambda path: (path / "ledger.db").stat().st_ctime):
        try:
            refuse_shared(folder, root, field="reuse")
        except ConfigError as error:
            logger.warning("nothing is reused of sweep %r: %s", folder.name, error)
            continue
        others: dict[str, str] = {}
        for known in _completed(folder, workload):
            if here in (None, _decisive(known.entry.result.environment)):
                found.setdefault(known.entry.result.key, known)
            else:
                others[known.entry.result.key] = _difference(known.entry.result.environment, here)
        if others:
            which = f"{len(others)} trials of sweep {folder.name!r}"
            what = ", ".join(sorted(set(others.values())))
            logger.warning("%s are not reused (%s); --reuse-across-versions takes them", which, what)
    if not found:
        return {}
    names = ask_device(settings).names
    return {key: known for key, known in found.items() if known.entry.result.cost.device in names}  # type: ignore[union-attr]


def _decisive(environment: Mapping[str, str]) -> dict[str, str]:
    """Versions in an environment that decide a result; what it does not tell is unknown."""
    return {package: environment.get(package, "unknown").partition("+")[0] for package in DECISIVE}


def _difference(environment: Mapping[str, str], here: Mapping[str, str]) -> str:
    """The first package that is not as it is here, in words."""
    theirs = _decisive(environment)
    package = next(name for name in DECISIVE if theirs[name] != here[name])
    return f"{package} {theirs[package]}, here {here[package]}"


def _completed(folder: Path, workload: Workload) -> list[CachedTrial]:
    try:
        ledger = Ledger(folder / "ledger.db", read_only=True)
    except (ConfigError, LedgerDamaged):
        return []  # of another program's version, or damaged: nothing to be had there
    try:
        theirs = ledger.workload()
        if theirs is None or (theirs.base_fingerprint, theirs.data_digest) != (
            workload.base_fingerprint,
            workload.data_digest,
        ):
            return []
        ran_by = ledger.fact(REUSED, {})
        return [
            CachedTrial(entry=e, sweep=ran_by.get(e.result.key, folder.name), adapters=folder / "adapters")
            for e in ledger.entries()
            if e.result.state == "completed" and e.result.cost and e.result.history
        ]
    finally:
        ledger.close()


def import_result(ledger: Ledger, adapters: Path, known: CachedTrial) -> bool:
    """Complete a queued trial of `ledger` with what is known of it; False where its adapter is gone or damaged.

    Its training time stays unknown: this sweep spent none.
    """
    result = known.entry.result
    files = adapter_store.read(known.adapters, result.key)
    damaged = adapter_store.fault(known.adapters / result.key, known.entry.adapter_sha256)
    if files is None or result.cost is None or damaged:
        return False
    ledger.start(result.key)
    ledger.keep_cost(result.config.cost_key, result.cost, of=result.key)
    for measurement in result.history:
        ledger.record(result.key, measurement)
    digest = adapter_store.write(adapters, result.key, files)
    ledger.finish(
        result.key,
        "completed",
        reason=f"reused: sweep {known.sweep} ran it",
        environment=result.environment,
        adapter_sha256=digest,
    )
    ledger.set_fact(REUSED, ledger.fact(REUSED, {}) | {result.key: known.sweep})
    return True


CachedTrials = Mapping[str, CachedTrial]
