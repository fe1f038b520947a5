"""What a person sees of a sweep: the plan, progress while it runs, the front at its end."""

import json
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.budgets import ENDED, FINISHED
from orchestrator.finalists import finalists, wanted
from orchestrator.front import Front, front_of, is_reused, objective_value
from orchestrator.infeasible import nothing_counts
from orchestrator.ledger import Ledger
from orchestrator.settings import MAXIMISED, Objective, SweepSettings
from orchestrator.sweep import SweepResult
from orchestrator.verdict import comparison_of, verdict_of
from trainables.config import FINAL_STATES, TARGETS
from trainables.predicted_memory import predicted_peak_mib, shape_in
from trainables.results import TrialResult

REFRESH_SECONDS = 1.0
UNITS: dict[Objective, tuple[str, str, float]] = {
    # objective: heading, format, factor from its own unit to the heading's
    "peak_memory_mib": ("peak MiB", ".1f", 1.0),
    "seconds_per_step": ("ms/step", ".1f", 1e3),
    "eval_loss_nats": ("loss (nats)", ".4f", 1.0),
    "embedding_cosine": ("cosine", ".4f", 1.0),
    "token_match_rate": ("match", ".3f", 1.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A sweep at one moment.

    Attributes:
        counts: trials by state.
        n_done: trials in a final state.
        n_expected: trials the sweep will come to, as far as is known: twins are added as they are needed.
        best: best value of each objective among completed trials.
        front_size: members of the Pareto front.
        phase: "search"; then "yardsticks": other seeds and judgements of the finalists.
        seconds_left: from the measured time of completed trials; None before the first.
        last_fault: reason of the last trial that broke.
    """

    counts: dict[str, int]
    n_done: int
    n_expected: int
    best: dict[Objective, float | None]
    front_size: int
    phase: Literal["search", "yardsticks"]
    seconds_left: float | None
    last_fault: str | None


def status_of(
    trials: Sequence[TrialResult], settings: SweepSettings, *, ended: bool = False, finished: bool = False
) -> Status:
    """Derive the status from the ledger's trials.

    Args:
        ended: the search is over, though it may not have taken up all it was allowed.
        finished: so is all that follows it.
    """
    counts = Counter(trial.state for trial in trials)
    done = [t for t in trials if t.state in FINAL_STATES]
    n_searched = 0 if ended or finished else _n_to_come(trials, settings)
    searching = n_searched > 0 or any(t.state not in FINAL_STATES and t.origin in ("search", "twin") for t in trials)
    expected = len(trials) + n_searched + (0 if searching or finished else _n_yardsticks_to_come(trials, settings))
    completed = [t for t in trials if t.state == "completed"]
    faults = [t for t in done if t.state in ("oom", "diverged", "failed", "refused")]
    return Status(
        counts=dict(counts),
        n_done=len(done),
        n_expected=expected,
        best={objective: _best(completed, objective) for objective in settings.objectives},
        front_size=len(front_of(trials, settings).members),
        phase="search" if searching else "yardsticks",
        seconds_left=_seconds_left(done, expected, max(1, counts["running"])),
        last_fault=max(faults, key=lambda t: t.ended_at or 0).reason if faults else None,
    )


def _n_to_come(trials: Sequence[TrialResult], settings: SweepSettings) -> int:
    """Trials the search will still take up."""
    n_left = settings.n_trials - sum(trial.origin == "search" for trial in trials)
    if settings.space.method == "grid":  # a twin may be a point of the grid
        known = {trial.config for trial in trials}
        n_left = min(n_left, sum(settings.config(point) not in known for point in settings.space.grid()))
    return max(0, n_left)


def _n_yardsticks_to_come(trials: Sequence[TrialResult], settings: SweepSettings) -> int:
    """Runs under other seeds that the finalists still need."""
    known = {trial.config for trial in trials}
    return sum(run.config not in known for run in wanted(trials, settings))


def _best(trials: Sequence[TrialResult], objective: Objective) -> float | None:
    values = [v for t in trials if (v := objective_value(t, objective)) is not None]
    if not values:
        return None
    return max(values) if objective in MAXIMISED else min(values)


def _seconds_left(done: Sequence[TrialResult], n_expected: int, n_at_once: int) -> float | None:
    own = [t for t in done if t.state != "completed" or t.train_seconds]  # a reused trial took no time
    spans = [t.ended_at - t.started_at for t in own if t.ended_at and t.started_at]
    if not spans:
        return None
    return sum(spans) / len(spans) * max(0, n_expected - len(done)) / n_at_once


def shown(value: float | None, objective: Objective) -> str:
    """A value in the unit of its heading."""
    _, form, factor = UNITS[objective]
    return "-" if value is None else format(value * factor, form)


def front_table(front: Front) -> Table:
    """The Pareto front, for a terminal of 80 columns."""
    shown_objectives = [*front.objectives]
    if "embedding_cosine" not in shown_objectives:
        shown_objectives.append("embedding_cosine")
    table = Table(title=f"Pareto front: {len(front.members)} trials", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("trial", "base", "rank", "alpha", "lr"):
        table.add_column(heading, justify="right", no_wrap=True)
    for objective in shown_objectives:
        table.add_column(UNITS[objective][0], justify="right", no_wrap=True)
    table.add_column("targets", overflow="fold")
    for trial in front.members:
        config = trial.config
        cells = [
            str(trial.number),
            config.precision,
            str(config.rank),
            f"{config.alpha:g}",
            f"{config.learning_rate:.0e}",
        ]
        cells += [shown(objective_value(trial, objective), objective) for objective in shown_objectives]
        table.add_row(*cells, "all" if config.targets == TARGETS else " ".join(config.targets))
    return table


def status_view(name: str, status: Status) -> Group:
    """The live view: a bar, trials by state, the best so far."""
    states = "  ".join(f"{state} {n}" for state, n in sorted(status.counts.items()))
    best = "  ".join(f"{UNITS[o][0]} {shown(v, o)}" for o, v in status.best.items())
    left = f", about {duration(status.seconds_left)} left" if status.seconds_left else ""
    lines = [
        Text(f"{name}: {status.phase}, {status.n_done} of {status.n_expected} trials{left}", style="bold"),
        Text(_bar(status.n_done / max(1, status.n_expected)), style="green"),
        Text(f"states  {states}"),
        Text(f"best    {best}   front {status.front_size}"),
    ]
    if status.last_fault:
        lines.append(Text(f"last fault  {status.last_fault}", style="red", overflow="ellipsis", no_wrap=True))
    if status.n_done < status.n_expected:
        lines.append(Text(f"Ctrl-C stops; qlora-sweep resume {name} goes on", style="dim"))
    return Group(*lines)


def _bar(share: float, width: int = 60) -> str:
    return "━" * round(share * width) + "╌" * (width - round(share * width))


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def trial_line(trial: TrialResult) -> str:
    """One finished trial, for a log."""
    config = trial.config
    text = f"trial {trial.number:>3} {trial.origin:<6} {config.precision:<5} r={config.rank:<3} {trial.state:<9}"
    if trial.history:
        last = trial.history[-1]
        text += f" loss {last.eval_loss_nats:.4f} at step {last.step}, {last.peak_memory_mib:.1f} MiB, "
        text += f"{last.seconds_per_step * 1e3:.1f} ms/step"
    return text + (f" ({trial.reason})" if trial.reason and trial.state != "pruned" else "")


class ProgressDisplay:
    """Shows a running sweep from a thread of its own: a live view on a terminal, a line a trial elsewhere."""

    def __init__(self, settings: SweepSettings, ledger_path: Path, console: Console) -> None:
        self._settings = settings
        self._path = ledger_path
        self._console = console
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

    def _show_live(self, ledger: Ledger) -> None:
        def view() -> Group:
            ended, finished = ledger.fact(ENDED) is not None, ledger.fact(FINISHED, False)
            found = status_of(ledger.trials(), self._settings, ended=ended, finished=finished)
            return status_view(self._settings.name, found)

        with Live(view(), console=self._console, refresh_per_second=2) as live:
            while not self._stop.wait(REFRESH_SECONDS):
                live.update(view())
            live.update(view())

    def _show_lines(self, ledger: Ledger) -> None:
        said = {t.key for t in ledger.trials() if t.state in FINAL_STATES}
        stopped = False
        while True:
            for trial in ledger.trials():
                if trial.state in FINAL_STATES and trial.key not in said:
                    said.add(trial.key)
                    self._console.print(trial_line(trial), highlight=False, soft_wrap=True)
            if stopped:
                return
            stopped = self._stop.wait(REFRESH_SECONDS)


def verdict_lines(result: SweepResult) -> list[str]:
    """What 4 bits did to each 4-bit finalist, beside what another seed does."""
    lines = []
    for trial in finalists(result.trials, result.settings, result.front):
        verdict = verdict_of(trial, result.settings.min_similarity)
        comparison = comparison_of(trial)
        if verdict is None or comparison is None:
            continue
        line = f"trial {trial.number}, 4 bits against its 16-bit twin: {verdict}"
        ratio = comparison.quantization_to_seed_ratio
        if ratio:
            line += (
                f"; 4 bits move it {ratio.value:.2f} times as far as another seed ({ratio.low:.2f} to {ratio.high:.2f})"
            )
        lines.append(line)
    return lines


def why_empty(result: SweepResult) -> str | None:
    """Why nothing is on the front, with the least violated config; None where something is."""
    shape = shape_in(Path(result.workload.base_folder))
    dtype = result.workload.compute_dtype
    return nothing_counts(
        result.trials, result.settings, lambda config: predicted_peak_mib(shape, config, dtype) if shape else None
    )


def print_result(result: SweepResult, run_page: str | None, *, as_json: bool) -> None:
    """The front on standard output, and where to look further."""
    if as_json:
        found = {trial.number: verdict_of(trial, result.settings.min_similarity) for trial in result.trials}
        verdicts = [{"trial": n, **asdict(verdict)} for n, verdict in found.items() if verdict]
        whole = {"name": result.settings.name, "mlflow_run": run_page, **result.front.to_dict(), "verdicts": verdicts}
        whole |= {"search_ended": result.ended.to_dict() if result.ended else None, "empty_because": why_empty(result)}
        print(json.dumps(whole))
        return
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file has no edge to wrap at
    console.print(front_table(result.front))
    for line in verdict_lines(result):
        print(line)
    counts = Counter(trial.state for trial in result.trials)
    twins = sum(trial.origin == "twin" for trial in result.trials)
    states = ", ".join(f"{n} {state}" for state, n in counts.most_common())
    n_reused = sum(is_reused(trial) for trial in result.trials)
    print(f"{len(result.trials)} trials ({twins} of them twins{f', {n_reused} reused' if n_reused else ''}): {states}")
    if result.ended:
        print(f"the search ended: {result.ended.text}")
    empty = why_empty(result)
    if empty:
        print(empty)
    print(f"measured on: {result.caption}")
    if run_page:
        print(f"look further: make ui, then {run_page}")
