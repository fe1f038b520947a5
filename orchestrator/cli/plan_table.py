"""The dry run's table: the first configs, and what each is predicted to need."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from orchestrator.analysis.describe import targets, text_of

if TYPE_CHECKING:
    from trainables.values.config import TrialConfig

SHOWN = ("precision", "rank", "alpha", "learning_rate", "targets")
"""In every table; of the other settings a column for each that differs between the configs."""


def plan_table(
    configs: "Sequence[TrialConfig]",
    peaks_mib: Sequence[float | None],
    seconds: Sequence[float | None],
    usd_per_hour: float | None,
) -> Table:
    """A row a config; it fits 80 columns, where long lists of targets are folded.

    Args:
        usd_per_hour: of what one trial has of a GPU; None without a price, and then there is no such column.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    differing = [name for name in configs[0].to_dict() if name not in SHOWN and _differs(name, configs)]
    for heading in ("base", "rank", "alpha", "lr", *differing):
        table.add_column(heading.replace("_", "\n"), justify="right", no_wrap=True)
    table.add_column("targets", overflow="fold")
    needs = _needs(peaks_mib, seconds, usd_per_hour)
    for heading in needs:
        table.add_column(heading, justify="right", no_wrap=True)
    for place, config in enumerate(configs):
        cells = [config.precision, str(config.rank), f"{config.alpha:g}", f"{config.learning_rate:.1e}"]
        cells += [text_of(getattr(config, name)) for name in differing]
        table.add_row(*cells, targets(config), *(column[place] for column in needs.values()))
    return table


def _needs(
    peaks_mib: Sequence[float | None], seconds: Sequence[float | None], usd_per_hour: float | None
) -> dict[str, list[str]]:
    """Columns of what is predicted by their headings; what is known of no config, as on a CPU, has none."""
    columns: dict[str, list[str]] = {}
    for heading, values, factor, form in (
        ("MiB", peaks_mib, 1.0, ".0f"),
        ("min", seconds, 1 / 60, ".1f"),
        ("USD", seconds, (usd_per_hour or 0.0) / 3600, ".2f"),
    ):
        if factor and any(values):
            columns[heading] = ["-" if value is None else f"{factor * value:{form}}" for value in values]
    return columns


def _differs(name: str, configs: "Sequence[TrialConfig]") -> bool:
    return len({getattr(config, name) for config in configs}) > 1


def fixed_line(configs: "Sequence[TrialConfig]") -> str:
    """The settings that all of the configs have."""
    same = []
    for name, value in configs[0].to_dict().items():
        if name not in SHOWN and not _differs(name, configs):
            same.append(f"{name} {text_of(value)}")
    return ", ".join(same)
