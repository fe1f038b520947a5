"""A sweep as the commands that only look read it: from its folder, while it may still run."""

from contextlib import closing
from typing import Any

from orchestrator import settings as settings_file
from orchestrator.driver.sweep import SweepResult, result_of
from orchestrator.ledger import Ledger
from orchestrator.report import content
from orchestrator.report.content import Report
from orchestrator.settings import SweepSettings
from trainables.values.results import TrialResult


def read(name: str, *facts: str) -> tuple[SweepSettings, list[TrialResult], dict[str, Any]]:
    """Settings, trials, and facts of the ledger by name.

    Raises:
        ConfigError: there is no such sweep.
    """
    folder = settings_file.sweep_folder(name)
    settings = settings_file.load(folder)
    with closing(Ledger(folder / "ledger.db", read_only=True)) as ledger:
        return settings, ledger.trials(), {fact: ledger.fact(fact) for fact in facts}


def report_of(name: str) -> tuple[Report, SweepResult | None]:
    """The report of a sweep, and the sweep as its figures need it once a trial has completed."""
    folder = settings_file.sweep_folder(name)
    settings = settings_file.load(folder)
    with closing(Ledger(folder / "ledger.db", read_only=True)) as ledger:
        trials = ledger.trials()
        report = content.read(settings, ledger, trials)
        result = result_of(settings, ledger, trials=trials) if report.states.get("completed") else None
        return report, result
