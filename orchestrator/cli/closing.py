"""The last lines of a sweep: how many trials of each origin, the answer, and what one does next."""

from collections import Counter
from collections.abc import Sequence
from math import ceil
from operator import attrgetter
from typing import TYPE_CHECKING

from orchestrator.analysis.choice import best, counting, how_sure, loss_noise
from orchestrator.analysis.describe import describe
from orchestrator.analysis.front import is_reused
from orchestrator.settings.command import command

if TYPE_CHECKING:
    from orchestrator.analysis.snapshot import SweepSnapshot
    from trainables.values.config import Origin
    from trainables.values.results import TrialResult

ORIGINS: "dict[Origin, str]" = {
    "search": "of the search",
    "baseline": "16-bit baselines",
    "replicate": "seed replicates",
    "baseline replicate": "seed replicates of baselines",
}


def counts_line(trials: "Sequence[TrialResult]") -> str:
    """How many trials there are, by origin, and how they ended."""
    by_origin = Counter(map(attrgetter("origin"), trials))
    origins = [f"{by_origin[origin]} {words}" for origin, words in ORIGINS.items() if by_origin[origin]]
    if n_reused := sum(map(is_reused, trials)):
        origins.append(f"{n_reused} reused")
    states = [f"{n} {state}" for state, n in Counter(map(attrgetter("state"), trials)).most_common()]
    return f"{len(trials)} trials ({', '.join(origins)}): {', '.join(states)}"


def next_lines(sweep: "SweepSnapshot") -> list[str]:
    """The best trial and how sure that is, the command for a budget of memory, where the report lies.

    Empty where no trial counts for the front.
    """
    found = counting(sweep.trials, sweep.settings)
    chosen = best(found)
    if chosen is None:
        return []
    name = sweep.settings.name
    lines = [
        f"best: trial {chosen.number}, {describe(chosen.config)}; {how_sure(chosen, found, loss_noise(sweep.trials))}",
        f"within a budget: {command()} best {name} --max-memory {_budget(chosen)}",
    ]
    report = sweep.folder / "report.html"
    return [*lines, f"report: {report}"] if report.is_file() else lines


def _budget(trial: "TrialResult") -> str:
    """A size that a trial fits, to put another in its place."""
    mib = trial.cost.peak_memory_mib
    return f"{ceil(mib)}MiB" if mib < 1024 else f"{ceil(mib / 102.4) / 10:g}GiB"
