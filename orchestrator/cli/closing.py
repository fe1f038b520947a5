"""The last lines of a sweep: how many trials of each origin, the answer, what one does next; and `report` in lines."""

from collections import Counter
from math import ceil
from operator import attrgetter
from typing import TYPE_CHECKING, TextIO

from orchestrator.analysis.answer import answer_of
from orchestrator.analysis.choice import best, counting, loss_noise, stairs
from orchestrator.analysis.costs import savings
from orchestrator.analysis.front import is_reused
from orchestrator.analysis.snapshot import LEARNED
from orchestrator.cli.lines import for_stream
from orchestrator.report.markdown import counted
from orchestrator.settings.command import command, pages
from trainables.values.config import BITS

if TYPE_CHECKING:
    from orchestrator.analysis.snapshot import SweepSnapshot
    from orchestrator.report.values import SweepReport, WithinMemory
    from trainables.values.config import Origin

ORIGINS: "dict[Origin, tuple[str, str]]" = {
    "search": ("of the search", "of the search"),
    "baseline": ("16-bit baseline", "16-bit baselines"),
    "replicate": ("seed replicate", "seed replicates"),
    "baseline replicate": ("seed replicate of a baseline", "seed replicates of baselines"),
}
"""Words for one trial, and for several."""

MAX_LINES = 8
"""Of what `report` says of a sweep, beside the path of the file that says all; a terminal may break them."""


def counts_line(sweep: "SweepSnapshot") -> str:
    """How many trials there are, by origin, and how they ended."""
    by_origin: Counter[str] = Counter(map(attrgetter("origin"), sweep.trials))
    origins = [f"{n} {words[n > 1]}" for origin, words in ORIGINS.items() if (n := by_origin[origin])]
    if n_reused := sum(map(is_reused, sweep.trials)):
        origins.append(f"{n_reused} reused")
    states = [f"{n} {state}" for state, n in Counter(map(attrgetter("state"), sweep.trials)).most_common()]
    n_learned, other = sweep.facts.get(LEARNED, 0), sweep.settings.warm_start
    warm = f"; warm start from {n_learned} trials of sweep {other}" if n_learned else ""
    return f"{counted(len(sweep.trials), 'trial')} ({', '.join(origins)}): {', '.join(states)}{warm}"


def answer_lines(sweep: "SweepSnapshot") -> list[str]:
    """The answer; what 4 bits save, where that was measured; and, where a cheaper one counts, the command for a
    budget."""
    return [answer_of(sweep), *_saved_lines(sweep), *_budget_lines(sweep)]


def _saved_lines(sweep: "SweepSnapshot") -> list[str]:
    """One for each loop."""
    over_all = [saving for saving in savings(sweep.trials) if saving.rank is None]
    is_wide = sweep.workload is not None and sweep.workload.compute_dtype == "float32"  # on a CPU, whose times vary
    lines = []
    for one in over_all:
        pairs = f"{counted(one.n_pairs, 'pair')} of shapes, otherwise equal"
        pairs += f", {one.loop} loop" if len(over_all) > 1 else ""
        of_steps = f"in steps {one.time_ratio:.2f} times as long"
        note = "what is called 16 bits computes in float32 here" if is_wide else of_steps
        figures = f"{abs(one.saved_mib):.1f} MiB of the peak, {abs(100 * one.saved_share):.1f} % ({pairs})"
        lines.append(f"4 bits {'save' if one.saved_mib > 0 else 'cost'} {figures}; {note}")
    return lines


def page_lines(sweep: "SweepSnapshot", run_page: str | None) -> list[str]:
    """Where to look further: the report, if there is one, and MLflow's page.

    Args:
        run_page: of the sweep's run in MLflow; None where MLflow lacks some of it.
    """
    report = sweep.folder / "report.html"
    lines = [f"report: {report}"] if report.is_file() else []
    return [*lines, f"MLflow: {pages()}, then", run_page] if run_page else lines


def report_text(report: "SweepReport", sweep: "SweepSnapshot", stream: TextIO) -> str:
    """A report in MAX_LINES lines: the answer, where it was measured, what is enough for which memory.

    Args:
        stream: broken for its width.
    """
    first = [report.answer, f"measured on: {report.caption}"]
    if not report.finished:
        state = "still running" if report.n_running else "not finished"
        further = "" if report.n_running or report.is_recorded else f"; go on with: {command()} resume {report.name}"
        first.append(f"{state}: {report.n_done} of {report.n_expected} trials have ended{further}")
    elif not report.states.get("completed") and report.outcomes:
        first.append(f"no trial completed: {report.outcomes[0].reason}")
    last = _budget_lines(sweep)
    steps = [_step_line(step) for step in report.within_memory]
    n_room = MAX_LINES - len(first) - len(last)
    if len(steps) > n_room:  # that of most memory stays
        steps[n_room - 2 : -1] = [f"{len(steps) - n_room + 1} more such steps: report.md"]
    return for_stream("\n".join([*first, *steps, *last]), stream)


def _step_line(step: "WithinMemory") -> str:
    bits, lost = BITS[step.config.precision], ", lost" if step.is_lost else ""
    return (
        f"from {step.peak_memory_mib:.1f} MiB: trial {step.number} ({bits}{lost}, rank {step.config.rank}), "
        f"{step.eval_loss_nats:.4f} nats, {1e3 * step.seconds_per_step:.1f} ms/step"
    )


def _budget_lines(sweep: "SweepSnapshot") -> list[str]:
    """The command for a budget that the answer's trial does not fit, and another does; none where there is no such."""
    found, noise = counting(sweep.trials, sweep.settings), loss_noise(sweep.trials)
    chosen = best(found, noise)
    peaks = [step[0].cost.peak_memory_mib for step in stairs(found, noise.margin)]
    smaller = [mib for mib in peaks if chosen and mib < chosen.cost.peak_memory_mib]
    if chosen is None or not smaller:
        return []
    size = _between(max(smaller), chosen.cost.peak_memory_mib)
    return [f"with less memory: {command()} best {sweep.settings.name} --max-memory {size}"]


def _between(mib: float, too_much: float) -> str:
    """A size that holds `mib` and not `too_much`, as round as there is one."""
    unit, per_unit, least = ("GiB", 1024.0, 1) if mib >= 1024 else ("MiB", 1.0, 0)
    for digits in range(least, 9):
        size = ceil(mib / per_unit * 10**digits) / 10**digits
        if size * per_unit < too_much:
            return f"{size:.{digits}f}{unit}"
    return f"{mib!r}MiB"
