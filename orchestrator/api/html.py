"""How a sweep looks in a notebook: how far it is, and its Pareto front as a table."""

from html import escape
from typing import TYPE_CHECKING

from orchestrator.analysis.describe import heading_of, shown, targets
from orchestrator.analysis.front import objective_value

if TYPE_CHECKING:
    from orchestrator.analysis.snapshot import SweepSnapshot
    from trainables.values.results import TrialResult

COLUMNS = ("trial", "base", "rank", "alpha", "learning rate", "targets")


def html_of(snapshot: "SweepSnapshot", now: float) -> str:
    """A line, a bar, and a table.

    Args:
        now: seconds since the epoch.
    """
    status, front = snapshot.status(now=now), snapshot.front
    states = ", ".join(f"{n} {state}" for state, n in sorted(status.counts.items()))
    line = f"{status.phase}, {status.n_done} of {status.n_expected} trials ({states or 'none yet'})"
    head = f"<b>{escape(snapshot.settings.name)}</b>: {line}"
    bar = f'<progress value="{status.share_done:.3f}" max="1" style="width: 100%"></progress>'
    headings = [*COLUMNS, *map(heading_of, front.objectives)]
    rows = [_row(headings, "th")]
    for trial in front.members:
        rows.append(_row(_cells(trial, front.objectives), "td"))
    table = f"<table><caption>Pareto front: {len(front.members)} trials</caption>{''.join(rows)}</table>"
    return f"<div>{head}<br>{bar}{table}<small>{escape(snapshot.caption)}</small></div>"


def _cells(trial: "TrialResult", objectives: tuple[str, ...]) -> list[str]:
    config = trial.config
    cells = [str(trial.number), config.precision, str(config.rank), f"{config.alpha:g}"]
    cells += [f"{config.learning_rate:.1e}", targets(config)]
    for objective in objectives:
        cells.append(shown(objective, objective_value(trial, objective)))
    return cells


def _row(cells: list[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
