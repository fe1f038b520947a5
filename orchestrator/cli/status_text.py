"""How far a sweep is, in words: the lines of `status` and of a run."""

from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.text import Text

from orchestrator.analysis.describe import heading_of, shown
from orchestrator.analysis.status import STOPPABLE, Running, Status
from orchestrator.objectives import OBJECTIVES
from orchestrator.report.markdown import counted, duration
from orchestrator.settings.command import command
from trainables.values.config import BITS

RUNNING_LINES = 8
"""At most so many for trials at work."""


def counted_line(name: str, status: Status) -> str:
    """How far a sweep is, and how long it will take from here."""
    return f"{name}: {phase_of(status)}, {counts_of(status)}{left_of(status)}"


def phase_of(status: Status) -> str:
    """What is done now; of evaluations how many are done, of the start how long it takes."""
    if status.starting_seconds is not None and status.starting_seconds >= 1:
        return f"{status.phase}, {duration(status.starting_seconds)}"
    if status.phase == "evaluating finalists":
        return f"{status.phase} ({status.n_evaluated} of {status.n_to_evaluate} runs)"
    return status.phase


def counts_of(status: Status) -> str:
    """Trials that have ended, of those that it will come to, and what these are."""
    reused = f" ({status.n_reused} reused)" if status.n_reused else ""
    kinds = " + ".join(counted(n, kind.removesuffix("s")) for kind, n in status.kinds.items())
    made_of = f": {kinds}" if len(status.kinds) > 1 else ""
    return f"{status.n_done} of {status.n_expected} trials{reused}{made_of}"


def left_of(status: Status) -> str:
    return f", about {duration(status.seconds_left)} left" if status.seconds_left else ""


def how_to_stop(name: str) -> str:
    return f"Ctrl-C stops; {command()} resume {name} goes on, and keeps every trial that has ended"


def running_lines(running: Sequence[Running]) -> Iterator[str]:
    """A line for each trial at work, of the first few."""
    shown_ones = running if len(running) <= RUNNING_LINES else running[: RUNNING_LINES - 1]
    for one in shown_ones:
        at_rung = f"step {one.step:>{len(str(one.max_steps))}} of {one.max_steps}"
        steps = at_rung if one.step else f"{one.max_steps} steps".ljust(len(at_rung))
        line = f"trial {one.number:>3}  {BITS[one.precision]:>7} rank {one.rank:<3} {steps}"
        line += "" if one.eval_loss_nats is None else f"  loss {one.eval_loss_nats:.4f}"
        yield line + ("" if one.seconds_per_step is None else f" {1000 * one.seconds_per_step:>7.1f} ms/step")
    if n_more := len(running) - len(shown_ones):
        yield f"and {n_more} more"


def status_view(
    name: str,
    status: Status,
    memory: str = "",
    *,
    hint: str = "",
    share: float | None = None,
    halted: str = "",
) -> Group:
    """The live view: a bar, the trials at work, trials by state, the best so far, what went wrong last.

    Args:
        memory: in use on GPUs, in one line.
        hint: how to stop or go on, for as long as anything is still to be run.
        share: that the bar shows, if it is not the status's own.
        halted: how it came to rest before its end, where no process runs it: "stopped", "recorded".
    """
    before = f"{halted} while " if halted else ""
    states = "  ".join(f"{state} {n}" for state, n in sorted(status.counts.items()))
    lines = [
        Text(f"{name}: {before}{phase_of(status)}{left_of(status)}", style="bold"),
        Text(_bar(status.share_done if share is None else share), style="green"),
        *map(Text, running_lines(status.running)),
        Text(f"done    {counts_of(status)}"),
        Text(f"states  {states}"),
        *map(Text, best_lines(status)),
        Text(f"front   {status.front_size}"),
    ]
    if memory:
        lines.append(Text(f"memory  {memory}"))
    if status.last_fault:
        fault = " ".join(status.last_fault.split())
        lines.append(Text(f"last error  {fault}", style="red", overflow="ellipsis", no_wrap=True))
    if hint and (halted or status.phase in STOPPABLE):
        lines.append(Text(hint, style="dim"))
    return Group(*lines)


def best_lines(status: Status) -> Iterator[str]:
    """The best value of each objective and whose it is: seldom one trial has them all."""
    begin = "best"
    for name, value in status.best.items():
        best = "lowest" if OBJECTIVES[name].sign > 0 else "highest"
        trial = "" if value is None else f" (trial {status.best_trial[name]})"
        yield f"{begin:<8}{best} {heading_of(name)} {shown(name, value)}{trial}"
        begin = ""


def _bar(share: float, width: int = 60) -> str:
    full = int(share * width)
    return f"{'━' * full}{'╌' * (width - full)} {int(100 * share):>3} % of its time"
