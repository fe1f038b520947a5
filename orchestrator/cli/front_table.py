"""The Pareto front as a terminal shows it: a table that fits, and what its differences mean."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from orchestrator.analysis.describe import heading_of, shown, targets
from orchestrator.analysis.front import device_of, objective_value

if TYPE_CHECKING:
    from orchestrator.analysis.front import Front
    from trainables.values.results import TrialResult

COSINE = "embedding_cosine"
OFF = "off the front by a tie that noise can turn, and on it in 25 % or more of the resamples: "
WIDE = 100
"""Columns of a terminal from which on the table has its frame, and units beside the objectives' names."""


def front_table(front: "Front", width: int, lost: Collection[str] = ()) -> Table:
    """The Pareto front in a terminal's width: where it does not fit it loses alpha, then the cosine; then targets fold.

    Args:
        lost: keys of trials that are marked: their verdict is "lost".
    """
    columns = ["trial", "base", "rank", "alpha", "lr", *front.objectives]
    columns += [COSINE] if COSINE not in front.objectives else []
    columns += ["device"] if len({device_of(trial) for trial in front.members}) > 1 else []  # whose times are not alike
    table = _table(front, [*columns, "targets"], width, lost)
    for spare in ("alpha", *({COSINE}.difference(front.objectives))):
        if Console(width=10 * width).measure(table).maximum > width:
            columns.remove(spare)
            table = _table(front, [*columns, "targets"], width, lost)
    return table


def _table(front: "Front", columns: list[str], width: int, lost: Collection[str]) -> Table:
    title, is_wide = f"Pareto front: {len(front.members)} trials", width >= WIDE
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=is_wide, show_edge=is_wide)
    table.collapse_padding = not is_wide
    for name in columns:
        if name in ("device", "targets"):
            table.add_column(name, overflow="fold")
        else:
            heading = heading_of(name) if name in (*front.objectives, COSINE) else name
            table.add_column(heading if is_wide else heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for trial in front.members:
        table.add_row(*(_cell(trial, name, lost) for name in columns))
    return table


def _cell(trial: "TrialResult", column: str, lost: Collection[str]) -> str:
    config = trial.config
    match column:
        case "trial":
            return str(trial.number)
        case "base":
            return config.precision + (", lost" if trial.key in lost else "")
        case "rank":
            return str(config.rank)
        case "alpha":
            return f"{config.alpha:g}"
        case "lr":
            return f"{config.learning_rate:.0e}"
        case "device":
            return device_of(trial)
        case "targets":
            return targets(config)
    return shown(column, objective_value(trial, column))


def noise_lines(front: "Front") -> list[str]:
    """What the front's differences mean: the noise, ties, and who is nearly on it."""
    if not front.members:
        return []
    noise = f"noise: {', '.join(one.text for one in front.noise)}"
    lines = [
        f"off the front is what one of these beats, by more than the noise in one and worse by more in none; {noise}"
    ]
    if any(one.margin for one in front.noise):
        shares = _shares(front, front.members)
        lines.append(f"stability (share of resamples with that noise in which each is on the front): {shares}")
    for trial in front.members:
        later = [str(other.number) for other in front.tied[trial.key] if other.number > trial.number]
        if later:
            lines.append(f"tied: trial {trial.number} with {', '.join(later)}")
    return lines + ([OFF + _shares(front, front.nearly)] if front.nearly else [])


def _shares(front: "Front", trials: "Sequence[TrialResult]") -> str:
    return "trial " + ", ".join(f"{trial.number} ({100 * front.shares[trial.key]:.0f} %)" for trial in trials)
