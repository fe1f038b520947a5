"""A sweep that was opened: its trials and front as tables, the one config to use, its report. Nothing is written."""

from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

from orchestrator.analysis import choice
from orchestrator.analysis.snapshot import SweepSnapshot, newest
from orchestrator.api.html import html_of
from orchestrator.report.content import report_of
from orchestrator.report.render import markdown
from orchestrator.report.rows import trial_rows
from orchestrator.settings import ROOT, stored

if TYPE_CHECKING:
    import pandas as pd

    from orchestrator.analysis.status import Status


@dataclass(frozen=True, slots=True)
class Report:
    """What a sweep came to, in Markdown; a notebook shows it laid out."""

    text: str

    def __str__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Sweep:
    """One sweep. Everything is read from its ledger when it is asked for, as the sweep may still run.

    Attributes:
        folder: with the ledger, the settings and, of a sweep that was run here, the adapters.
    """

    name: str
    folder: Path

    @property
    def snapshot(self) -> SweepSnapshot:
        """As the ledger has it now: settings, trials, front, verdicts."""
        return SweepSnapshot.read_in(self.folder)

    @property
    def trials(self) -> "pd.DataFrame":
        """One row a trial, by its number; the columns are those of trials.parquet."""
        return _table(self.snapshot)

    @property
    def front(self) -> "pd.DataFrame":
        """The rows of the Pareto front's members, in its order."""
        snapshot = self.snapshot
        numbers = [trial.number for trial in snapshot.front.members]
        return _table(snapshot).reindex(numbers)

    @property
    def status(self) -> "Status":
        """How far it is."""
        return self.snapshot.status(now=time())

    def best(self, max_memory: str | None = None, *, knee: bool = False) -> choice.Choice:
        """The one config to use, see orchestrator.analysis.choice: its `trial.config`, and in words `why` and `sure`.

        Args:
            max_memory: only of trials that need at most so much peak memory: "2GiB".
            knee: the front's knee instead.
        Raises:
            ConfigError: no trial counts, or none fits; the message names the nearest.
        """
        limit = None if max_memory is None else choice.mib_of(max_memory)
        return choice.choose(self.snapshot, max_memory_mib=limit, at_knee=knee)

    def report(self) -> Report:
        """What it came to so far."""
        return Report(markdown(report_of(self.snapshot), {}))

    def _repr_html_(self) -> str:
        return html_of(self.snapshot, time())


def open_sweep(name: str | Path | None = None) -> Sweep:
    """Open a sweep to read it.

    Args:
        name: of a sweep under mlflow_runs/sweeps/ or mlflow_runs/recorded/, or a folder with a ledger in it; None is
            the newest sweep.
    Raises:
        ConfigError: there is no such sweep; the message offers the nearest name.
    """
    name = newest(ROOT) if name is None else name
    folder = Path(name) if isinstance(name, Path) or "/" in name else stored.folder_of(name, ROOT)
    return Sweep(stored.read(folder).name, folder)


def _table(snapshot: SweepSnapshot) -> "pd.DataFrame":
    import pandas as pd  # a second, which status and best need not wait for; MLflow and Ray Tune bring it

    return pd.DataFrame(trial_rows(snapshot)).set_index("number") if snapshot.trials else pd.DataFrame()
