"""The last lines of a sweep: how many trials of each origin, the answer, and what one does next."""

from collections import Counter
from math import ceil
from operator import attrgetter
from typing import TYPE_CHECKING

from orchestrator.analysis.answer import answer_of
from orchestrator.analysis.choice import best, counting
from orchestrator.analysis.front import is_reused
from orchestrator.analysis.snapshot import ENQUEUED, LEARNED
from orchestrator.settings.command import command, pages

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


def counts_line(sweep: "SweepSnapshot") -> str:
    """How many trials there are, by origin, and how they ended."""
    by_origin: Counter[str] = Counter(map(attrgetter("origin"), sweep.trials))
    n_enqueued = min(sweep.facts.get(ENQUEUED, 0), by_origin["search"])
    by_origin["search"] -= n_enqueued
    origins = [f"{n_enqueued} enqueued to begin with"] if n_enqueued else []
    origins += [f"{by_origin[origin]} {words}" for origin, words in ORIGINS.items() if by_origin[origin]]
    if n_reused := sum(map(is_reused, sweep.trials)):
        origins.append(f"{n_reused} reused")
    states = [f"{n} {state}" for state, n in Counter(map(attrgetter("state"), sweep.trials)).most_common()]
    n_learned, other = sweep.facts.get(LEARNED, 0), sweep.settings.warm_start
    warm = f"; warm start from {n_learned} trials of sweep {other}" if n_learned else ""
    return f"{len(sweep.trials)} trials ({', '.join(origins)}): {', '.join(states)}{warm}"


def next_lines(sweep: "SweepSnapshot", run_page: str | None) -> list[str]:
    """The answer; and of a sweep that has one the command for a budget of memory, the report and MLflow's page.

    Args:
        run_page: of the sweep's run in MLflow; None where MLflow lacks some of it.
    """
    lines = [answer_of(sweep)]
    if chosen := best(counting(sweep.trials, sweep.settings)):
        lines.append(f"within a budget: {command()} best {sweep.settings.name} --max-memory {_budget(chosen)}")
    report = sweep.folder / "report.html"
    if report.is_file():
        lines.append(f"report: {report}")
    return [*lines, f"MLflow: {pages()}, then", run_page] if run_page else lines


def _budget(trial: "TrialResult") -> str:
    """A size that a trial fits, to put another in its place."""
    mib = trial.cost.peak_memory_mib
    return f"{ceil(mib)}MiB" if mib < 1024 else f"{ceil(mib / 102.4) / 10:g}GiB"
