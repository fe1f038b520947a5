"""Times of equal steps, measured more than once: from them the noise of time is known, see orchestrator.analysis.noise.

In the middle of a search the first trial whose cost key is known measures its step anew, and so names the reference
cost key; a seed replicate of that key does the same at the sweep's end: of start, middle and end one each. Where the
search repeats no key after its middle, or no replicate has the reference's, the first seed replicate names one; it and
the next of that key measure anew, so that the key has a time from the search and two from the sweep's end. What earlier
sweeps measured on the same kind of device, over the same base and under the same versions, counts too.
"""

from collections.abc import Iterator, Mapping, Set
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.front import is_reused
from orchestrator.analysis.noise import MIN_REPEATS, REPEATS
from orchestrator.driver.reuse import decisive_versions, here
from orchestrator.ledger import Ledger
from orchestrator.objectives import OBJECTIVES
from orchestrator.security.folder_access import refuse_shared
from trainables.values.errors import ConfigError, LedgerDamaged

if TYPE_CHECKING:
    from orchestrator.settings import SweepSettings
    from trainables.values.results import Cost, TrialResult
    from trainables.values.workload import Workload

OWN = "own"
"""Of a repeat: measured by this sweep."""
Repeat = Mapping[str, Any]


def timed(settings: "SweepSettings") -> list[str]:
    """The sweep's objectives that a clock gives."""
    return [name for name in settings.objectives if OBJECTIVES[name].is_timed]


def is_timed(settings: "SweepSettings") -> bool:
    """Whether each step is to be timed alone on its device: on a CPU it would hold up all others for nothing."""
    return settings.device == "cuda" or bool(timed(settings))


def is_due(trial: "TrialResult", settings: "SweepSettings", ledger: Ledger) -> bool:
    """Whether a trial's step is to be measured anew though its cost key is known."""
    if not timed(settings):
        return False
    key, own = trial.config.cost_key, [repeat["cost_key"] for repeat in ledger.fact(REPEATS, ()) if repeat[OWN]]
    if trial.is_of_search:
        is_late = trial.origin == "search" and 2 * trial.number >= settings.n_trials
        return is_late and not own and bool(ledger.costs(key))
    replicates = [other.config.cost_key for other in ledger.trials() if not other.is_of_search]
    reference = next((one for one in own if one in replicates), replicates[0])
    return key == reference and own.count(reference) < MIN_REPEATS - 1


def keep(cost_key: str, measured: "Cost", known: "Cost", settings: "SweepSettings", ledger: Ledger) -> None:
    """Keep a measurement of a cost key beside the one that counts, unless it is that one."""
    names = timed(settings)
    if not names or measured.device != known.device or measured == known:
        return
    repeat = _repeat(cost_key, measured, names, own=True)
    before = ledger.fact(REPEATS, [])
    if repeat not in before:
        ledger.set_fact(REPEATS, [*before, repeat])


def _repeat(cost_key: str, cost: "Cost", names: list[str], *, own: bool) -> Repeat:
    return {"cost_key": cost_key, "device": cost.device, OWN: own} | {name: getattr(cost, name) for name in names}


def keep_earlier(
    settings: "SweepSettings", workload: "Workload", root: Path, devices: Set[str], ledger: Ledger
) -> None:
    """Keep what earlier sweeps measured; nothing on a CPU, or where nothing of other sweeps is to be reused.

    Args:
        devices: kinds that this sweep runs on.
    """
    if not timed(settings) or not settings.reuse or settings.device == "cpu" or ledger.fact(REPEATS) is not None:
        return
    found: list[Repeat] = []
    for path in sorted((root / "sweeps").glob("*/ledger.db")):
        if path.parent.name != settings.name:
            found += [one for one in _of_sweep(path, workload, timed(settings), root) if one["device"] in devices]
    ledger.set_fact(REPEATS, [one for place, one in enumerate(found) if one not in found[:place]])


def _of_sweep(path: Path, workload: "Workload", names: list[str], root: Path) -> Iterator[Repeat]:
    try:
        refuse_shared(path.parent, root, field="reuse")
        ledger = Ledger(path, read_only=True)
    except (ConfigError, LedgerDamaged):
        return
    with closing(ledger):
        theirs = ledger.workload()
        same = ("base_fingerprint", "compute_dtype")
        if theirs is None or any(getattr(theirs, name) != getattr(workload, name) for name in same):
            return
        of_here = False
        for trial in ledger.trials():
            if trial.cost and not is_reused(trial) and decisive_versions(trial.environment) == here():
                of_here = True
                yield _repeat(trial.config.cost_key, trial.cost, names, own=False)
        for repeat in ledger.fact(REPEATS, ()) if of_here else ():
            if repeat[OWN] and all(name in repeat for name in names):
                yield {**repeat, OWN: False}
