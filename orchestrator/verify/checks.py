"""Whether a sweep is whole: its ledger against what was asked for, and against all that is written from the ledger.

The ledger is the truth. Optuna's study, settings.json, front.json, trials.parquet, figures, report and MLflow's runs
are projections of it, which a repair writes again; what is wrong with the ledger itself, or with an adapter that has no
whole copy, stays.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.ledger import adapter_store
from orchestrator.ledger.ownership import owned
from orchestrator.security.redaction import reason_of
from orchestrator.settings import stored, sweep_folder
from orchestrator.tracking.publishing import publish
from orchestrator.verify.asked import of_settings, of_workload
from orchestrator.verify.files import of_adapters, of_drawn, of_front_file, of_table
from orchestrator.verify.ledger import Difference, of_ledger, of_study, read
from orchestrator.verify.mlflow_runs import adapter_copies, forget, of_mlflow
from trainables.values.errors import ConfigError, LedgerDamaged, SweepError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a look at one sweep came to.

    Attributes:
        repaired: the differences that were there before the repair, None where none was asked for.
        differences: those that are there now.
    """

    name: str
    n_trials: int
    differences: tuple[Difference, ...]
    repaired: tuple[Difference, ...] | None = None

    @property
    def summary(self) -> str:
        """One line about a sweep that is whole."""
        done = f", {len(self.repaired)} differences repaired" if self.repaired else ""
        return f"sweep {self.name}: {self.n_trials} trials; ledger, study, adapters, files and MLflow agree{done}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "trials": self.n_trials,
            "whole": not self.differences,
            "differences": [difference.to_dict() for difference in self.differences],
            "before_repair": None if self.repaired is None else [difference.to_dict() for difference in self.repaired],
        }


def differences_of(kept: SweepSnapshot, root: Path) -> tuple[Difference, ...]:
    """All differences, those of settings and ledger first; of a sweep that never started only that."""
    found = [*of_settings(kept), *of_ledger(kept)]
    if not kept.entries or kept.workload is None:
        return tuple(found)
    for check in (of_workload, of_study, of_adapters, of_front_file, of_table, of_drawn):
        found += check(kept)
    return (*found, *of_mlflow(kept, root))


def run(name: str, root: Path, *, repair: bool = False) -> Verified:
    """Verify a sweep that no process runs; with `repair` write its projections again, and verify them.

    Raises:
        ConfigError: there is no such sweep, it is being run, or its ledger cannot be opened.
    """
    folder = sweep_folder(name, root)
    settings = stored.load(folder)
    try:
        with owned(folder):  # a running sweep is ahead of its projections, and a repair beside it would double them
            try:
                kept = read(settings, folder)
            except LedgerDamaged as error:
                return Verified(name=name, n_trials=0, differences=(Difference(part="ledger", text=str(error)),))
            found = differences_of(kept, root)
            if not (repair and found):
                return Verified(name=name, n_trials=len(kept.entries), differences=found)
            _repair(kept, root, found)
            after = read(stored.load(folder), folder)
            left = differences_of(after, root)
            return Verified(name=name, n_trials=len(after.entries), differences=left, repaired=found)
    except PermissionError as error:
        raise ConfigError(f"NAME: {error.filename} cannot be written, so sweep {name!r} cannot be held") from None


def _repair(kept: SweepSnapshot, root: Path, found: tuple[Difference, ...]) -> None:
    """Bring damaged adapters back from MLflow's copies, delete wrong runs, and write everything from the ledger."""
    if stored.edits:
        stored.save(kept.settings, kept.folder)
    if not kept.entries or kept.workload is None:
        return
    damaged = {difference.key for difference in found} - {None}
    try:
        copies = adapter_copies(kept, root) if damaged else {}
        for entry in kept.entries:
            key = entry.result.key
            if key in damaged and copies.get(key):
                adapter_store.restore(kept.folder / "adapters", key, copies[key], entry.adapter_sha256)
        forget(kept, root, found)
    except SweepError:
        raise
    except Exception as error:
        logger.warning("MLflow cannot be written (%s)", reason_of(error, kept.settings.tracking_uri))
    publish(kept.settings, root, interrupted=kept.is_open)
