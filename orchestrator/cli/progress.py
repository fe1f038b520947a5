"""What a person sees of a sweep: the plan, progress while it runs, the front at its end."""

import sys
import threading
import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.analysis.answer import answer_of
from orchestrator.analysis.describe import describe, heading_of, shown, targets
from orchestrator.analysis.finalists import VERDICT_SEEDS, finalists, verdict_trial
from orchestrator.analysis.front import Front, device_of, objective_value
from orchestrator.analysis.host_memory import largest_mib
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.analysis.status import Status
from orchestrator.analysis.verdict import failed_evaluations, seeds
from orchestrator.cli.closing import counts_line, next_lines
from orchestrator.cli.lines import folded, for_stream
from orchestrator.cli.output import print_json
from orchestrator.cluster.gpu_memory import gpu_memory, text_of
from orchestrator.driver.plan import why_empty
from orchestrator.ledger import Ledger
from orchestrator.report.markdown import duration
from orchestrator.settings import SweepSettings
from orchestrator.settings.command import command, pages
from trainables.values.config import FINAL_STATES
from trainables.values.errors import SweepError
from trainables.values.results import TrialResult

REFRESH_SECONDS = 1.0


def front_table(front: Front, width: int, lost: Collection[str] = ()) -> Table:
    """The Pareto front; under 100 columns an objective's unit stands below it, so that all fits into 80.

    Args:
        lost: keys of trials that are marked: their verdict is "lost".
    """
    shown_objectives = [*front.objectives]
    if "embedding_cosine" not in shown_objectives:
        shown_objectives.append("embedding_cosine")
    title, fits = f"Pareto front: {len(front.members)} trials", width >= 100
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=fits, show_edge=fits)
    table.collapse_padding = not fits
    for heading in ("trial", "base", "rank", "alpha", "lr"):
        table.add_column(heading, justify="right", no_wrap=True)
    for objective in shown_objectives:
        heading = heading_of(objective)
        table.add_column(heading if fits else heading.replace(" ", "\n"), justify="right", no_wrap=True)
    devices = {device_of(trial) for trial in front.members}
    if len(devices) > 1:  # their times must not be read beside each other
        table.add_column("device", overflow="fold")
    table.add_column("targets", overflow="fold")
    for trial in front.members:
        c = trial.config
        cells = [
            str(trial.number),
            c.precision + (", lost" if trial.key in lost else ""),
            str(c.rank),
            f"{c.alpha:g}",
            f"{c.learning_rate:.0e}",
        ]
        for objective in shown_objectives:
            cells.append(shown(objective, objective_value(trial, objective)))
        if len(devices) > 1:
            cells.append(device_of(trial))
        table.add_row(*cells, targets(c))
    return table


def noise_lines(front: Front) -> list[str]:
    """What the front's differences mean: the noise, ties, and who is nearly on it."""
    if not front.members:
        return []
    noise = f"noise: {', '.join(one.text for one in front.noise)}"
    lines = [
        f"off the front is what one of these beats, by more than the noise in one and worse by more in none; {noise}"
    ]
    shares = [f"trial {trial.number} {100 * front.shares[trial.key]:.0f} %" for trial in front.members]
    if any(one.margin for one in front.noise):
        lines.append(
            f"stability (share of resamples with that noise in which each is on the front): {', '.join(shares)}"
        )
    for trial in front.members:
        later = [str(other.number) for other in front.tied[trial.key] if other.number > trial.number]
        if later:
            lines.append(f"tied: trial {trial.number} with {', '.join(later)}")
    nearly = [f"trial {trial.number} {100 * front.shares[trial.key]:.0f} %" for trial in front.nearly]
    return lines + ([f"off the front, with a stability of 25 % or more: {', '.join(nearly)}"] if nearly else [])


def counted_line(name: str, status: Status) -> str:
    """How far a sweep is, and how long it will take from here."""
    left = f", about {duration(status.seconds_left)} left" if status.seconds_left else ""
    reused = f" ({status.n_reused} reused)" if status.n_reused else ""
    kinds = " + ".join(f"{n} {kind}" for kind, n in status.kinds.items())
    made_of = f": {kinds}" if len(status.kinds) > 1 else ""
    return f"{name}: {status.phase}, {status.n_done} of {status.n_expected} trials{reused}{made_of}{left}"


def how_to_stop(name: str) -> str:
    return f"Ctrl-C stops; {command()} resume {name} goes on, and keeps every trial that has ended"


def status_view(name: str, status: Status, memory: str = "", *, here: bool = True) -> Group:
    """The live view: a bar, trials by state, the best so far, what went wrong last.

    Args:
        memory: in use on GPUs, in one line.
        here: whether the sweep runs in this process; another one's may have been stopped.
    """
    states = "  ".join(f"{state} {n}" for state, n in sorted(status.counts.items()))
    best = "  ".join(f"{heading_of(o)} {shown(o, v)}" for o, v in status.best.items())
    lines = [
        Text(counted_line(name, status), style="bold"),
        Text(_bar(status.n_done / max(1, status.n_expected)), style="green"),
        Text(f"states  {states}"),
        Text(f"best    {best}   front {status.front_size}"),
    ]
    if memory:
        lines.append(Text(f"memory  {memory}"))
    if status.last_fault:
        fault = " ".join(status.last_fault.split())
        lines.append(Text(f"last error  {fault}", style="red", overflow="ellipsis", no_wrap=True))
    if status.n_done < status.n_expected:
        hint = how_to_stop(name) if here else f"if it was stopped, {command()} resume {name} goes on"
        lines.append(Text(hint, style="dim"))
    return Group(*lines)


def _bar(share: float, width: int = 60) -> str:
    return "━" * round(share * width) + "╌" * (width - round(share * width))


def trial_line(trial: TrialResult) -> str:
    """One finished trial, for a log."""
    text = f"trial {trial.number:>3} {trial.origin:<6} {describe(trial.config)}: {trial.state}"
    if trial.history:
        last = trial.history[-1]
        text += f", loss {last.eval_loss_nats:.4f} at step {last.step}, {trial.cost.peak_memory_mib:.1f} MiB, "
        text += f"{trial.cost.seconds_per_step * 1e3:.1f} ms/step"
    return text + (f" ({trial.reason})" if trial.reason and trial.state != "pruned" else "")


class ProgressDisplay:
    """Shows a running sweep from a thread of its own: a live view on a terminal, a line a trial elsewhere."""

    def __init__(self, settings: SweepSettings, ledger_path: Path, console: Console) -> None:
        self._settings = settings
        self._path = ledger_path
        self._console = console
        self._seen: tuple[int, SweepSnapshot] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._stop.set()
            self._thread.join()

    def _show(self) -> None:
        ledger = Ledger(self._path)
        try:
            (self._show_live if self._console.is_terminal else self._show_lines)(ledger)
        finally:
            ledger.close()

    def _snapshot(self, ledger: Ledger) -> SweepSnapshot:
        """As the ledger has the sweep now; read again only after it was written."""
        version = ledger.version
        if self._seen is None or self._seen[0] != version:
            self._seen = version, SweepSnapshot.of(self._settings, ledger)
        return self._seen[1]

    def _show_live(self, ledger: Ledger) -> None:
        def view() -> Group:
            found = self._snapshot(ledger).status(now=time.time())
            return status_view(self._settings.name, found, text_of(gpu_memory()))

        with Live(view(), console=self._console, refresh_per_second=2) as live:
            while not self._stop.wait(REFRESH_SECONDS):
                live.update(view())
            live.update(view())

    def _show_lines(self, ledger: Ledger) -> None:
        said = {t.key for t in self._snapshot(ledger).trials if t.state in FINAL_STATES}
        self._console.print(how_to_stop(self._settings.name), highlight=False, soft_wrap=True)
        stopped = False
        while True:
            snapshot = self._snapshot(ledger)
            new = [t for t in snapshot.trials if t.state in FINAL_STATES and t.key not in said]
            for trial in new:
                said.add(trial.key)
                self._console.print(trial_line(trial), highlight=False, soft_wrap=True)
            if new:
                memory = text_of(gpu_memory())
                line = counted_line(self._settings.name, snapshot.status(now=time.time()))
                self._console.print(line + (f"; {memory}" if memory else ""), highlight=False, soft_wrap=True)
            if stopped:
                return
            stopped = self._stop.wait(REFRESH_SECONDS)


def verdict_lines(snapshot: SweepSnapshot) -> list[str]:
    """What 4 bits cost each 4-bit finalist, and below it how far they move its texts, which decides nothing."""
    lines = []
    for trial in finalists(snapshot.trials, snapshot.settings, snapshot.front):
        verdict = snapshot.verdicts.get(trial.key)
        if verdict is None:
            continue
        lines.append(f"trial {trial.number}: {verdict}")
        if verdict.behaviour:
            lines.append(f"trial {trial.number}, behaviour (decides nothing): {verdict.behaviour}")
    return lines


def more_seeds_line(snapshot: SweepSnapshot) -> str | None:
    """The command that adds the seeds that the best 4-bit finalist's verdict lacks; None where it lacks none."""
    chosen = verdict_trial(snapshot.trials, snapshot.settings)
    verdict = snapshot.verdicts.get(chosen.key) if chosen else None
    if verdict is None or verdict.lost is None or verdict.lost.n_pairs >= VERDICT_SEEDS:
        return None
    resume = f"{command()} resume {snapshot.settings.name} --verdict-seeds {VERDICT_SEEDS}"
    return f"the verdict on trial {chosen.number} is of {seeds(verdict.lost.n_pairs)}; for {VERDICT_SEEDS}: {resume}"


def to_dict(snapshot: SweepSnapshot, run_page: str | None) -> dict[str, Any]:
    """What --json prints of a sweep."""
    verdicts = []
    for trial in snapshot.trials:
        if verdict := snapshot.verdicts.get(trial.key):
            verdicts.append({"trial": trial.number, **asdict(verdict)})
    return {
        "name": snapshot.settings.name,
        "mlflow_run": run_page,
        **snapshot.front.to_dict(),
        "verdicts": verdicts,
        "search_ended": snapshot.ended.to_dict() if snapshot.ended else None,
        "empty_because": why_empty(snapshot),
        "failed_evaluations": [asdict(one) for one in failed_evaluations(snapshot.trials, snapshot.settings)],
    }


def print_result(
    snapshot: SweepSnapshot, run_page: str | None, *, as_json: bool, fault: SweepError | None = None
) -> None:
    """The front on standard output, and where to look further.

    Args:
        fault: for which the command will end with another exit code than 0.
    """
    if as_json:
        error = {"kind": type(fault).__name__, "message": str(fault)} if fault else None
        print_json(to_dict(snapshot, run_page) | {"error": error, "exit_code": fault.exit_code if fault else 0})
        return
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file has no edge to wrap at
    print(folded(answer_of(snapshot), console.width) if console.is_terminal else answer_of(snapshot))
    console.print(front_table(snapshot.front, console.width, snapshot.lost))
    lines = [
        *noise_lines(snapshot.front),
        *verdict_lines(snapshot),
        *map(str, failed_evaluations(snapshot.trials, snapshot.settings)),
    ]
    if more := more_seeds_line(snapshot):
        lines.append(more)
    lines.append(counts_line(snapshot.trials))
    if snapshot.ended:
        lines.append(f"the search ended: {snapshot.ended.text}")
    if empty := why_empty(snapshot):
        lines.append(empty)
    lines.append(f"measured on: {snapshot.caption}")
    if peak := largest_mib(snapshot.trials):
        lines.append(f"host memory: at most {peak:,} MiB resident in a worker process")
    lines += next_lines(snapshot)
    print(for_stream("\n".join(lines), sys.stdout))
    if run_page:
        print(f"look further: {pages()}, then {run_page}")
