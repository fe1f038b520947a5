"""A sweep as its ledger has it at one moment: what everything that is shown of a sweep starts from."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.analysis.budgets import ENDED, FINISHED, Ended
from orchestrator.analysis.front import REFERENCE, Front, front_of
from orchestrator.analysis.moment import BEGAN_AT, Moment
from orchestrator.analysis.noise import REPEATS, Repeats
from orchestrator.analysis.status import Status, status_of
from orchestrator.analysis.verdict import Verdict, verdicts
from orchestrator.ledger import Ledger
from orchestrator.ledger.ownership import owner_of
from orchestrator.ledger.rows import Entry
from orchestrator.settings import ROOT, SweepSettings, stored, sweep_folder
from orchestrator.settings.command import command
from trainables.models.layout import Coverage
from trainables.models.predicted_peak import named_peak_mib
from trainables.values.config import TrialConfig
from trainables.values.errors import ConfigError
from trainables.values.results import TrialResult
from trainables.values.spans import Span
from trainables.values.workload import Workload

COVERAGE, GENERIC = "coverage", "generic_base"
"""Facts: what each choice of targets covers, and the type of a base that no family describes, else None."""
LEARNED = "n_learned"
"""Facts: trials of another sweep that the sampler began with, and proposals of this one that stood fixed before any."""


@dataclass(frozen=True, kw_only=True)
class SweepSnapshot:
    """Read once for each thing that shows a sweep; what follows from the rows is worked out when it is asked for.

    Attributes:
        entries: the rows of all trials, by number.
        facts: what the ledger says of the sweep as a whole, by name.
        folder: of the sweep.
        interrupted: stopped before its end; `resume` goes on.
        stopped: why the sweep gave itself up before its end; it is `interrupted` too.
        edits: of settings.json since the sweep began: field, value then, value now; `verify` alone looks for them.
        spans: what its processes did when; none in ledgers from before that was kept.
    """

    settings: SweepSettings
    entries: tuple[Entry, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()
    interrupted: bool = False
    stopped: str | None = None
    edits: tuple[tuple[str, Any, Any], ...] = ()
    spans: tuple[Span, ...] = ()

    @classmethod
    def read(cls, name: str, root: Path = ROOT) -> "SweepSnapshot":
        """Read a sweep from its folder, while it may still run.

        Raises:
            ConfigError: there is no such sweep.
        """
        folder = sweep_folder(name, root)
        stored.load(folder)
        return cls.read_in(folder)

    @classmethod
    def find(cls, name: str, root: Path = ROOT) -> "SweepSnapshot":
        """As `read`, of a recorded sweep too, for what writes nothing into a sweep's folder.

        Raises:
            ConfigError: there is no such sweep.
        """
        return cls.read_in(stored.folder_of(name, root))

    @classmethod
    def read_in(cls, folder: Path) -> "SweepSnapshot":
        """Read a sweep from a folder, wherever that lies; who could write to it is not asked.

        Raises:
            ConfigError: there is no sweep.
        """
        settings = stored.read(folder)
        with closing(Ledger(folder / "ledger.db", read_only=True)) as ledger:
            return cls.of(settings, ledger)

    @classmethod
    def of(cls, settings: SweepSettings, ledger: Ledger) -> "SweepSnapshot":
        """What an open ledger holds now."""
        found = {"entries": tuple(ledger.entries()), "facts": ledger.facts(), "spans": tuple(ledger.spans())}
        return cls(settings=settings, folder=ledger.path.parent, **found)

    def begun(self) -> "SweepSnapshot":
        """Itself.

        Raises:
            ConfigError: no trial has been started, so there is nothing to write of it.
        """
        if self.workload is None:
            raise ConfigError(f"sweep {self.settings.name!r} has not started a trial yet")
        return self

    @cached_property
    def trials(self) -> tuple[TrialResult, ...]:
        """By number."""
        return tuple(entry.result for entry in self.entries)

    @cached_property
    def workload(self) -> Workload | None:
        """What all trials share; None before the first was started."""
        values = self.facts.get("workload")
        return Workload(**values) if values else None

    @cached_property
    def protocols(self) -> frozenset[int | None]:
        """Versions of the measurement protocol that its trials are of; None of one that this program does not know."""
        if self.workload is None:
            return frozenset()
        return frozenset(self.workload.protocol_of(trial.config, trial.key) for trial in self.trials)

    @cached_property
    def front(self) -> Front:
        return front_of(self.trials, self.settings, self.reference, self.repeats)

    @property
    def repeats(self) -> Repeats:
        """Times of cost keys that were measured more than once."""
        return self.facts.get(REPEATS, ())

    @cached_property
    def verdicts(self) -> Mapping[str, Verdict]:
        """On 4-bit trials, by key; see orchestrator.analysis.verdict."""
        return verdicts(self.trials, self.settings, self.predicted_peak_mib)

    @property
    def lost(self) -> frozenset[str]:
        """Keys of 4-bit trials that lose more than the margin of what tuning gained."""
        return frozenset(key for key, verdict in self.verdicts.items() if verdict.is_lost)

    @property
    def reference(self) -> list[float] | None:
        """The reference point that was fixed for the sweep's hypervolumes; None before that."""
        return self.facts.get(REFERENCE)

    @property
    def ended(self) -> Ended | None:
        """Why the search is over; None while it is not, and in ledgers from before that was kept."""
        return Ended.from_fact(self.facts.get(ENDED))

    @property
    def coverage(self) -> tuple[Coverage, ...]:
        """Of each choice of targets; empty in ledgers from before that was kept."""
        found = []
        for values in self.facts.get(COVERAGE) or ():
            found.append(Coverage(**values | {"targets": tuple(values["targets"])}))
        return tuple(found)

    @property
    def is_open(self) -> bool:
        """Trials are still to be run."""
        return any(trial.state in ("queued", "running") for trial in self.trials)

    @property
    def caption(self) -> str:
        """Under what the figures were taken; says so where the weights are not pretrained ones."""
        if self.workload is None:
            return "Nothing was measured yet."
        devices = ", ".join(sorted({trial.cost.device for trial in self.trials if trial.cost}))
        return f"{self.workload.base_caption}; {devices or 'no device yet'}, {self.workload.compute_dtype}"

    def status(self, now: float | None = None, *, is_run: bool | None = None) -> Status:
        """How far the sweep is; see `status_of`. Of one that no process runs no time is left: it does not pass.

        Args:
            now: seconds since the epoch; without it nothing is said of time.
            is_run: whether a process runs it; by default its folder is asked.
        """
        is_run = owner_of(self.folder) is not None if is_run is None else is_run
        ended, finished = self.ended is not None, bool(self.facts.get(FINISHED))
        facts = self.facts if is_run else {**self.facts, BEGAN_AT: 0.0}  # nothing starts
        moment = None if now is None else Moment.of(self.entries, facts, now, self.spans)
        known = {"ended": ended, "finished": finished, "moment": moment, "repeats": self.repeats}
        found = status_of(self.trials, self.settings, **known)
        return found if is_run else replace(found, seconds_left=None)

    def predicted_peak_mib(self, config: TrialConfig) -> float | None:
        """Peak memory of a config on the sweep's base, from shapes alone; None on a CPU or of an unknown shape."""
        dtype = self.workload.compute_dtype if self.workload else self.settings.compute_dtype
        return named_peak_mib(self.settings.base_model, self.settings.device, dtype, config)


def newest(root: Path) -> str:
    """Name of the sweep whose settings were written last.

    Raises:
        ConfigError: there is none.
    """
    found = sorted((root / "sweeps").glob("*/settings.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(f"there is no sweep under {root / 'sweeps'} yet; run one first: {command()} run")
    return found[-1].parent.name
