"""All trials as one HTML table, which `table.js` lets a reader sort and filter; without that it is read as it is."""

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.describe import targets, text_of
from orchestrator.analysis.front import objective_value
from orchestrator.objectives import DEFAULT, OBJECTIVES
from trainables.values.config import BITS

if TYPE_CHECKING:
    from orchestrator.analysis.snapshot import SweepSnapshot
    from trainables.values.config import TrialConfig
    from trainables.values.results import TrialResult

SCRIPT = Path(__file__).with_name("table.js")
STYLE = """
.trials { max-height: 80vh; overflow: auto; border: 1px solid var(--line); }
.trials table { margin: 0; width: 100%; }
.trials th, .trials td { white-space: nowrap; }
.trials thead th { position: sticky; top: 0; background: var(--shade); z-index: 1; }
.trials tbody th { position: sticky; left: 0; background: var(--ground); font-weight: normal;
  border-bottom: 1px solid var(--line); }
.trials button { font: inherit; font-weight: bold; color: inherit; background: none; border: 0; padding: 0;
  cursor: pointer; }
.trials [aria-sort=ascending] button::after { content: " \\2191"; }
.trials [aria-sort=descending] button::after { content: " \\2193"; }
.filter input { font: inherit; color: inherit; background: var(--ground); border: 1px solid var(--strong);
  padding: .2em .5em; width: 18rem; max-width: 100%; box-sizing: border-box; }
.filter small { display: block; }
"""
SETTINGS: "dict[str, tuple[str, Callable[[TrialConfig], str]]]" = {
    "precision": ("base", lambda config: BITS[config.precision]),
    "rank": ("rank", lambda config: f"{config.rank}"),
    "alpha": ("alpha", lambda config: f"{config.alpha:g}"),
    "learning_rate": ("learning rate", lambda config: f"{config.learning_rate:.1e}"),
    "targets": ("targets", lambda config: targets(config)),
}
"""Those that every table has -> heading, and how a value is shown."""
HINT = "Words that a row must have, or column=value, such as: front rank=8 base=4. A press on a head sorts."


def trial_table(snapshot: "SweepSnapshot") -> str:
    """The table with its field for words to filter by; of settings, those of SETTINGS and those that trials differ in.

    A cell that is not sorted by what stands in it has that as `data-value`.
    """
    trials = snapshot.trials
    columns = {"trial": [f'<th scope="row">{trial.number}</th>' for trial in trials]}
    columns["front"] = [_cell("front" if trial.key in snapshot.front.keys else "-") for trial in trials]
    columns |= _measured(trials, (*DEFAULT, *snapshot.settings.objectives))
    if snapshot.verdicts:
        answers = [snapshot.verdicts[t.key].answer if t.key in snapshot.verdicts else "-" for t in trials]
        columns["verdict"] = [_cell(answer) for answer in answers]
    columns |= _settings(trials)
    columns |= {name: [_cell(str(getattr(t, name) or "-")) for t in trials] for name in ("origin", "state", "reason")}
    said = {heading: cells for heading, cells in columns.items() if set(cells) != {_cell("-")}}
    head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in said)
    body = ""
    for cells in zip(*said.values(), strict=True):
        body += f"<tr>{''.join(cells)}</tr>\n"
    return (
        '<p class="filter" hidden><label>Filter <input type="search"></label> <output></output>'
        f"<small>{HINT}</small></p>\n"
        f'<div class="trials" tabindex="0" role="region" aria-label="All trials"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def _cell(text: str, value: object = None) -> str:
    exact = "" if value is None else f' data-value="{value}"'
    return f"<td{exact}>{html.escape(text)}</td>"


def _measured(trials: "Sequence[TrialResult]", objectives: Sequence[str]) -> dict[str, list[str]]:
    """Heading of each objective -> cells; the exact value decides the order."""
    columns = {}
    for name in dict.fromkeys(objectives):
        values = [objective_value(trial, name) if trial.history else None for trial in trials]
        columns[OBJECTIVES[name].heading] = [_cell(OBJECTIVES[name].shown(value), value) for value in values]
    return columns


def _settings(trials: "Sequence[TrialResult]") -> dict[str, list[str]]:
    """Heading of each setting -> cells."""
    columns = {heading: [_cell(shown(trial.config)) for trial in trials] for heading, shown in SETTINGS.values()}
    rows: list[dict[str, Any]] = [trial.config.to_dict() for trial in trials]
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [text_of(row[name]) if name in row else "-" for row in rows]
        if name not in SETTINGS and len(set(values)) > 1:
            columns[name.replace("_", " ")] = [_cell(value) for value in values]
    return columns
