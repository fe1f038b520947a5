"""What a person sees of a sweep: the plan, progress while it runs, the front at its end."""

import io
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live

from orchestrator.analysis.describe import describe
from orchestrator.analysis.finalists import VERDICT_SEEDS, finalists, verdict_trial
from orchestrator.analysis.host_memory import largest_mib
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.analysis.verdict import failed_evaluations, seeds
from orchestrator.cli.closing import answer_lines, counts_line, page_lines
from orchestrator.cli.front_table import front_table, noise_lines
from orchestrator.cli.lines import for_stream
from orchestrator.cli.output import print_json
from orchestrator.cli.status_text import counted_line, how_to_stop, status_view
from orchestrator.cluster.gpu_memory import gpu_memory, text_of
from orchestrator.driver.plan import why_empty
from orchestrator.ledger import Ledger
from orchestrator.settings import SweepSettings
from orchestrator.settings.command import command
from trainables.values.config import FINAL_STATES
from trainables.values.errors import SweepError
from trainables.values.results import TrialResult

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 1.0
LAST_VIEW_SECONDS = 10.0
"""For what is shown last; a terminal that takes nothing more holds nothing else."""


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
            self._thread.join(LAST_VIEW_SECONDS)

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
        share = 0.0

        def view() -> Group:
            nonlocal share
            status = self._snapshot(ledger).status(now=time.time(), is_run=True)
            if status.phase != "ended" or self._stop.is_set():  # between the last task and the files it seems so, too
                share = max(share, status.share_done)  # where more turns out to be left, the bar waits
            name, memory = self._settings.name, text_of(gpu_memory())
            return status_view(name, status, memory, hint=how_to_stop(name), share=share)

        with Live(view(), console=self._console, refresh_per_second=2) as live:
            while not self._stop.wait(REFRESH_SECONDS):
                live.update(view())
            live.update(view())

    def _show_lines(self, ledger: Ledger) -> None:
        said = {t.key for t in self._snapshot(ledger).trials if t.state in FINAL_STATES}
        self._print(how_to_stop(self._settings.name))
        before, phase, stopped = None, None, False
        while True:
            snapshot = self._snapshot(ledger)
            if snapshot is not before:
                new = [t for t in snapshot.trials if t.state in FINAL_STATES and t.key not in said]
                said.update(trial.key for trial in new)
                status = snapshot.status(now=time.time(), is_run=True)
                for trial in new:
                    self._print(trial_line(trial))
                if new or (status.phase != phase and (stopped or status.phase != "ended")):  # files come after the end
                    memory = text_of(gpu_memory())
                    self._print(counted_line(self._settings.name, status) + (f"; {memory}" if memory else ""))
                before, phase = snapshot, status.phase
            if stopped:
                return
            stopped = self._stop.wait(REFRESH_SECONDS)

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)


def verdict_lines(snapshot: SweepSnapshot) -> list[str]:
    """What 4 bits cost each 4-bit finalist, and below it how far they move its texts, which decides nothing."""
    lines = []
    for trial in finalists(snapshot.trials, snapshot.settings, snapshot.front.members):
        verdict = snapshot.verdicts.get(trial.key)
        if verdict is None:
            continue
        off = "" if trial.key in snapshot.front.keys else " (off the front)"
        gained = f"; at 16 bits tuning gained {verdict.lost.gain_nats:.4f} nats" if verdict.lost else ""
        lines.append(f"trial {trial.number}{off}: {verdict}{gained}")
        if verdict.behaviour:
            lines.append(f"trial {trial.number}, behaviour (decides nothing): {verdict.behaviour}")
    return lines


def more_seeds_line(snapshot: SweepSnapshot) -> str | None:
    """What adds the seeds that verdicts lack; None where none lacks any.

    For the best 4-bit finalist a command; then, for others that are undecided, the flag of a sweep anew.
    """
    chosen = verdict_trial(snapshot.trials, snapshot.settings)
    verdict = snapshot.verdicts.get(chosen.key) if chosen else None
    if chosen is None or verdict is None or verdict.lost is None:
        return None
    if verdict.lost.n_pairs >= VERDICT_SEEDS:
        others = [str(trial.number) for trial in _undecided_of_one_seed(snapshot)]
        named = f"trial{'s' * (len(others) > 1)} {', '.join(others)}: undecided of one seed"
        best = f"other seeds are trained of the best 4-bit trial alone, {chosen.number}"
        flag = f"a new sweep with --finalist-seeds {VERDICT_SEEDS} trains them of all finalists"
        return f"{named}; {best}; {flag}" if others and snapshot.settings.finalist_seeds == 1 else None
    resume = f"{command()} resume {snapshot.settings.name} --verdict-seeds {VERDICT_SEEDS}"
    return f"the verdict on trial {chosen.number} is of {seeds(verdict.lost.n_pairs)}; for {VERDICT_SEEDS}: {resume}"


def _undecided_of_one_seed(snapshot: SweepSnapshot) -> Iterator[TrialResult]:
    for trial in finalists(snapshot.trials, snapshot.settings, snapshot.front.members):
        verdict = snapshot.verdicts.get(trial.key)
        if verdict and verdict.answer == "undecided" and verdict.lost and verdict.lost.n_pairs == 1:
            yield trial


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
    """All of it on standard output.

    Args:
        fault: for which the command will end with another exit code than 0.
    """
    if as_json:
        error = {"kind": type(fault).__name__, "message": str(fault)} if fault else None
        print_json(to_dict(snapshot, run_page) | {"error": error, "exit_code": fault.exit_code if fault else 0})
        return
    print_front(snapshot)
    print_pages(snapshot, run_page)


def print_front(snapshot: SweepSnapshot) -> None:
    """The front, what it rests on and last the answer, of which no file needs to be written yet."""
    out, table = Console(), io.StringIO()
    width = out.width if out.is_terminal else 120  # a file has no edge to wrap at
    console = Console(file=table, width=width, force_terminal=out.is_terminal, color_system=out.color_system)
    console.print(front_table(snapshot.front, width, snapshot.lost))
    lines = [
        *noise_lines(snapshot.front),
        *verdict_lines(snapshot),
        *map(str, failed_evaluations(snapshot.trials, snapshot.settings)),
    ]
    if more := more_seeds_line(snapshot):
        lines.append(more)
    lines.append(counts_line(snapshot))
    if snapshot.ended:
        lines.append(f"the search ended: {snapshot.ended.text}")
    if empty := why_empty(snapshot):
        lines.append(empty)
    lines.append(f"measured on: {snapshot.caption}")
    if peak := largest_mib(snapshot.trials):
        lines.append(f"host memory: at most {peak:,} MiB resident in a worker process")
    _print(table.getvalue() + for_stream("\n".join([*lines, "", *answer_lines(snapshot)]), sys.stdout))


def print_pages(snapshot: SweepSnapshot, run_page: str | None) -> None:
    """Where to look further, once all is written."""
    if lines := page_lines(snapshot, run_page):
        _print(for_stream("\n".join(lines), sys.stdout))


def _print(text: str) -> None:
    """On standard output, while somebody reads it and its disk has room: in any case a sweep's files are written."""
    try:
        print(text, flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            logger.warning(f"standard output takes nothing more: {error.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries once more at its end
