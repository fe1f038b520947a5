"""The dry run's table: the first configs, and what each is predicted to need."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from orchestrator.analysis.describe import targets, text_of
from orchestrator.settings.command import command
from trainables.cost.gpus import NEWER_MIB

if TYPE_CHECKING:
    from trainables.cost.gpus import Gpu
    from trainables.values.config import TrialConfig

SHOWN = ("precision", "rank", "alpha", "learning_rate", "targets")
"""In every table; of the other settings a column for each that differs between the configs."""


def plan_table(
    configs: "Sequence[TrialConfig]",
    peaks_mib: Sequence[float | None],
    seconds: Sequence[float | None],
    usd_per_hour: float | None,
    *,
    on_gpu: bool,
) -> Table:
    """A row a config; it fits 80 columns, where long lists of targets are folded.

    Args:
        peaks_mib: on a GPU, be it the sweep's device (`on_gpu`) or not, which the heading says.
        usd_per_hour: of what one trial has of a GPU; None without a price, and then there is no such column.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    differing = [name for name in configs[0].to_dict() if name not in SHOWN and _differs(name, configs)]
    for heading in ("base", "rank", "alpha", "lr", *differing):
        table.add_column(heading.replace("_", "\n"), justify="right", no_wrap=True)
    table.add_column("targets", overflow="fold")
    needs = _needs(peaks_mib, seconds, usd_per_hour, "MiB" if on_gpu else "MiB on\na GPU")
    for heading in needs:
        table.add_column(heading, justify="right", no_wrap=True)
    for place, config in enumerate(configs):
        cells = [config.precision, str(config.rank), f"{config.alpha:g}", f"{config.learning_rate:.1e}"]
        cells += [text_of(getattr(config, name)) for name in differing]
        table.add_row(*cells, targets(config), *(column[place] for column in needs.values()))
    return table


def missing_lines(
    peaks_mib: Sequence[float | None],
    seconds: Sequence[float | None],
    compute_dtype: str,
    gpu: "Gpu | None",
    *,
    on_gpu: bool,
) -> list[str]:
    """How to get what the table lacks, and what its peaks are of where no GPU is named.

    Args:
        compute_dtype: that was asked for; "auto" is the GPU's own.
    """
    lines = []
    if any(peaks_mib) and gpu is None:
        lines.append(f"MiB: of an H100 or newer; older GPUs need {NEWER_MIB:.0f} MiB less, and --gpu T4 is of that one")
    if not any(peaks_mib):
        lines.append(
            f"MiB and minutes: this base's shape is not known here; MiB of one that the hub has: {command()} fit MODEL"
        )
    elif not any(seconds) and compute_dtype != "auto":
        lines.append(f"minutes: not predicted, as no speed in {compute_dtype} is known here")
    elif not any(seconds):
        lines.append("minutes: add --gpu T4, or another GPU's name; or run a sweep on a GPU here once")
    if not on_gpu:
        lines.append("the plan for a GPU: add --device cuda, which needs none for a dry run")
    return lines


def excess_line(peaks_mib: Sequence[float | None], gpu: "Gpu") -> str | None:
    """How many of the configs do not fit a GPU, by prediction; None where none is known not to."""
    over = [peak for peak, fits in zip(peaks_mib, fits_of(peaks_mib, gpu), strict=True) if fits is False]
    if not over:
        return None
    need = f"{max(over):,.0f} MiB, where it has {gpu.usable_mib:,.0f} MiB for tensors"
    return f"{len(over)} of these {len(peaks_mib)} do not fit one {gpu.name}: up to {need}"


def fits_of(peaks_mib: Sequence[float | None], gpu: "Gpu | None") -> list[bool | None]:
    """Whether each predicted peak is within what tensors can take; None where either is not known."""
    return [None if peak is None or gpu is None else peak <= gpu.usable_mib for peak in peaks_mib]


def _needs(
    peaks_mib: Sequence[float | None], seconds: Sequence[float | None], usd_per_hour: float | None, peak_heading: str
) -> dict[str, list[str]]:
    """Columns of what is predicted by their headings; what is known of no config has none."""
    columns: dict[str, list[str]] = {}
    for heading, values, factor, form in (
        (peak_heading, peaks_mib, 1.0, ".0f"),
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
