"""Results of other sweeps' ledgers: a trial known there, on the same kind of device and under the same versions, is
not run again."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.driver.plan import first_configs
from orchestrator.ledger import Ledger, adapter_store
from orchestrator.objectives import OBJECTIVES
from orchestrator.search.design import N_FIRST
from orchestrator.search.samplers import POPULATION
from orchestrator.security.folder_access import refuse_shared
from trainables.cost.device import versions
from trainables.values.config import rungs
from trainables.values.errors import ConfigError, LedgerDamaged

if TYPE_CHECKING:
    from orchestrator.ledger.rows import Entry
    from orchestrator.settings import SweepSettings
    from trainables.values.results import Cost, Measurement, TrialResult
    from trainables.values.workload import Workload

logger = logging.getLogger(__name__)

REUSED = "reused"
"""Fact: key of each reused trial -> the sweep that ran it."""
DECISIVE = ("torch", "transformers", "peft", "bitsandbytes")
"""Packages whose versions decide a trial's losses, memory and time. Those of the driver are its workers' too, see
orchestrator.cluster.nodes.check_versions; as there, the build behind a "+" does not count."""


REMEDY = "--reuse-across-versions takes them"
NO_REMEDY = "a step's time is an objective, and is never that of other versions"
UNMODELLED = {"tpe": N_FIRST, "gp": N_FIRST, "nsga2": POPULATION}
"""Configs that a sampler proposes before it needs results; other samplers need none."""
MAX_LOOKED_UP = 1000
"""Configs that are looked up before the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedTrial:
    """A completed trial of another sweep.

    Attributes:
        sweep: that ran it.
        folder: of the sweep whose ledger says so, and that holds its adapter.
    """

    entry: "Entry"
    sweep: str
    folder: Path

    def is_measured_at(self, rungs: Collection[int]) -> bool:
        """Whether all of them were measured: of a seed replicate its end alone is."""
        return set(rungs) <= {measurement.step for measurement in self.entry.result.history}


CachedTrials = Mapping[str, CachedTrial]
WhyStop = Callable[["TrialResult", "Measurement", "Cost"], str | None]
"""Of a trial that came to a rung: why it ends there, None where it goes on."""


def cached_trials(settings: "SweepSettings", workload: "Workload", root: Path, devices: Set[str]) -> CachedTrials:
    """Completed trials of all other sweeps under `root` on devices and versions of this one, by key; of equal ones the
    oldest sweep's, or the first that was measured at more rungs; none where nothing is to be reused.

    A key stands for everything that decides the outcome (see Workload.key), device and versions apart. What is passed
    over for another reason than its key is said. A time is taken over only where it is the same thing: where it is an
    objective, of the same versions whatever was asked, and on a CPU, whose other work decides it, never.

    Args:
        devices: kinds that this sweep runs on.
    """
    is_timed = any(OBJECTIVES[name].is_timed for name in settings.objectives)
    if not settings.reuse or (is_timed and settings.device == "cpu"):
        return {}
    known: dict[str, CachedTrial] = {}
    wanted = None if settings.reuse_across_versions and not is_timed else here()
    for path in sorted((root / "sweeps").glob("*/ledger.db"), key=lambda path: path.stat().st_ctime):
        if path.parent.name == settings.name:
            continue
        try:
            refuse_shared(path.parent, root, field="reuse")
        except ConfigError as error:
            logger.warning("nothing is reused of sweep %r: %s", path.parent.name, error)
            continue
        _take_in(known, _completed(path.parent, workload), wanted, REMEDY if not is_timed else NO_REMEDY)
    return {key: trial for key, trial in known.items() if trial.entry.result.cost.device in devices}  # type: ignore[union-attr]


def keep_costs(settings: "SweepSettings", workload: "Workload", root: Path, devices: Set[str], ledger: Ledger) -> None:
    """Keep the memory and time that other sweeps measured of cost keys, those of the oldest one.

    So a rerun tells its sampler the same times. Only of the same kinds of device under the same versions, and never on
    a CPU, whose other work decides them.
    """
    if not settings.reuse or settings.device == "cpu" or ledger.trials():
        return
    wanted = here()
    for path in sorted((root / "sweeps").glob("*/ledger.db"), key=lambda path: path.stat().st_ctime):
        if path.parent.name == settings.name:
            continue
        try:
            refuse_shared(path.parent, root, field="reuse")
        except ConfigError:
            continue  # said by cached_trials
        for entry in _of_same_inputs(path.parent, workload):
            trial = entry.result
            if trial.cost and trial.cost.device in devices and decisive_versions(trial.environment) == wanted:
                ledger.keep_cost(trial.config.cost_key, trial.cost)


def known_line(settings: "SweepSettings", workload: "Workload", cached: CachedTrials, have: Set[str]) -> str | None:
    """How many of a sweep's trials are known from other sweeps, in a line; None where none is.

    A sampler that models its results is asked for as many configs as it proposes before there are any.

    Args:
        have: keys of the trials that the sweep has taken up already.
    """
    if not cached:
        return None
    method, n_trials = settings.space.method, settings.n_trials
    n_first = min(n_trials, UNMODELLED.get(method, MAX_LOOKED_UP))
    configs = set(first_configs(settings, n_first))
    configs |= {config.at_other_precision for config in configs if config.precision == "nf4"}
    asked = {workload.key(config): rungs_asked(settings, rungs(config.max_steps)) for config in configs}
    keys = asked.keys() - have
    found = {key for key in keys & cached.keys() if cached[key].is_measured_at(asked[key])}
    if not found:
        return None
    names = sorted({cached[key].sweep for key in found})
    sweeps = f" from sweep{'s' if len(names) > 1 else ''} {', '.join(names)}"
    if n_first == n_trials:
        return f"{len(found)} of {len(keys)} trials are known{sweeps} (--no-reuse runs them)"
    more = "those that the search proposes after them are looked up, too"
    return f"{len(found)} of the first {len(keys)} trials are known{sweeps} (--no-reuse runs them); {more}"


def rungs_asked(settings: "SweepSettings", rungs: tuple[int, ...]) -> tuple[int, ...]:
    """Of a trial's rungs those that a known result must have: none where nothing is stopped."""
    return rungs if settings.space.early_terminate.type != "none" else ()


def _take_in(
    known: dict[str, CachedTrial], trials: list[CachedTrial], wanted: Mapping[str, str] | None, remedy: str
) -> None:
    """Add trials of one sweep that ran under these versions, or under any; of the others it is said.

    Args:
        wanted: versions of DECISIVE; None takes any.
        remedy: what to say to who wants them.
    """
    n_others, differences = 0, set()
    for trial in trials:
        theirs = decisive_versions(trial.entry.result.environment)
        if wanted is None or theirs == wanted:
            before = known.setdefault(trial.entry.result.key, trial)
            if not before.is_measured_at([one.step for one in trial.entry.result.history]):
                known[trial.entry.result.key] = trial
        else:
            n_others += 1
            package = next(name for name in DECISIVE if theirs[name] != wanted[name])
            differences.add(f"{package} {theirs[package]}, here {wanted[package]}")
    if n_others:
        which, what = f"{n_others} trials of sweep {trials[0].folder.name!r}", ", ".join(sorted(differences))
        logger.warning("%s are not reused (%s); %s", which, what, remedy)


def here() -> dict[str, str]:
    """Versions that decide the results of this machine."""
    return decisive_versions(versions(DECISIVE))


def decisive_versions(environment: Mapping[str, str]) -> dict[str, str]:
    """Versions in an environment that decide a result; what it does not tell is unknown."""
    return {package: environment.get(package, "unknown").partition("+")[0] for package in DECISIVE}


def _completed(folder: Path, workload: "Workload") -> list[CachedTrial]:
    """Completed trials of one sweep, if it is over the same base and data."""
    trials = []
    with _opened(folder, workload) as ledger:
        entries = ledger.entries() if ledger else []
        ran_by = ledger.fact(REUSED, {}) if ledger else {}
    for entry in entries:
        result = entry.result
        if result.state == "completed" and result.cost and result.history:
            trials.append(CachedTrial(entry=entry, sweep=ran_by.get(result.key, folder.name), folder=folder))
    return trials


def _of_same_inputs(folder: Path, workload: "Workload") -> "list[Entry]":
    """Trials of one sweep, if it is over the same base and data in the same arithmetic."""
    with _opened(folder, workload) as ledger:
        is_same = ledger is not None and ledger.workload().compute_dtype == workload.compute_dtype
        return ledger.entries() if is_same else []


@contextmanager
def _opened(folder: Path, workload: "Workload") -> Iterator[Ledger | None]:
    """A sweep's ledger, if it is over the same base and data; None where it is not, or cannot be read."""
    try:
        ledger = Ledger(folder / "ledger.db", read_only=True)
    except (ConfigError, LedgerDamaged):
        yield None  # of another program's version, or damaged: nothing to be had there
        return
    with closing(ledger):
        theirs, same = ledger.workload(), ("base_fingerprint", "data_digest")
        is_same = theirs is not None and all(getattr(theirs, name) == getattr(workload, name) for name in same)
        yield ledger if is_same else None


def import_result(
    ledger: Ledger, known: CachedTrial, why_stop: "WhyStop | None" = None, asked: Collection[int] = ()
) -> bool:
    """Complete a queued trial of `ledger` with what is known of it; False where its adapter is gone or damaged, or it
    was not measured at a rung that is asked for, as a seed replicate there may not have been.

    Its training time stays unknown: this sweep spent none.

    Args:
        why_stop: of this sweep's stopping rule, which may end the trial at a rung as if it ran here.
        asked: the rungs that it must have been measured at.
    """
    result, theirs = known.entry.result, known.folder / "adapters"
    files = adapter_store.read(theirs, result.key)
    damaged = adapter_store.fault(theirs / result.key, known.entry.adapter_sha256)
    if files is None or result.cost is None or damaged or not known.is_measured_at(asked):
        return False
    ledger.start(result.key)
    ledger.keep_cost(result.config.cost_key, result.cost, of=result.key)
    for measurement in result.history:
        so_far = ledger.record(result.key, measurement).result
        why = why_stop(so_far, measurement, result.cost) if why_stop else None
        if why is not None:
            ledger.finish(result.key, "pruned", reason=why, environment=result.environment)
            return True
    digest = adapter_store.write(ledger.path.parent / "adapters", result.key, files)
    ledger.finish(
        result.key,
        "completed",
        reason=f"reused: sweep {known.sweep} ran it",
        environment=result.environment,
        adapter_sha256=digest,
    )
    ledger.set_fact(REUSED, ledger.fact(REUSED, {}) | {result.key: known.sweep})
    return True
