"""Where in the base 4 bits shows, without training: a table, a heat map, files and an MLflow run."""

import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table

from orchestrator.driver.plan import GPU_DEFAULTS, defaults_for, device_here
from orchestrator.settings import check_name, refuse_secrets_in
from orchestrator.settings.command import from_here, pages
from trainables.data.formats import parse_columns
from trainables.models import base_model, inputs
from trainables.values.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from trainables.comparison.sensitivity import BaseSensitivity, Sensitivity, Variant

logger = logging.getLogger(__name__)

N_BLOCKS_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivitySettings:
    """What one run was asked.

    Attributes:
        name: of the run and of its folder under mlflow_runs/sensitivity.
        base_model, data: sources as in trainables.models.base_model.find and trainables.data.rows.read_rows.
        device: "cuda" or "cpu".
        data_split, columns: as in trainables.values.workload.Workload.
    """

    name: str
    base_model: str
    data: str
    device: str
    data_split: str | None = None
    columns: str | None = None

    def folder(self, root: Path) -> Path:
        """Where the files go.

        Raises:
            ConfigError: the name is no folder's name.
        """
        return root / "sensitivity" / check_name(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityResult:
    """What a run was asked, and what it measured."""

    settings: SensitivitySettings
    base: "BaseSensitivity"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        facts = asdict(self.settings)
        for name in ("n_rows", "n_response_tokens", "unquantized_loss_nats", "variants_seconds", "caption"):
            facts[name] = getattr(self.base, name)
        facts |= {"workload": asdict(self.base.workload), "environment": dict(self.base.environment)}
        return facts | {"variants": self.base.rows()}


def choose(
    name: str | None,
    base: str | None,
    source: str | None,
    device: str | None,
    root: Path,
    *,
    data_split: str | None = None,
    columns: str | None = None,
) -> SensitivitySettings:
    """Fill in what was not said for this machine.

    Raises:
        ConfigError: an unknown or absent device, bad columns, a bad name, or one that is taken.
    """
    parse_columns(columns)
    refuse_secrets_in({"base_model": base, "data": source})
    if device not in (None, "cuda", "cpu"):
        raise ConfigError(f"device must be cuda or cpu, got {device!r}{did_you_mean(str(device), ('cuda', 'cpu'))}")
    name = name or f"sensitivity-{time.strftime('%Y%m%d-%H%M%S')}"
    device = device_here(device)
    if base is not None:
        base_model.local_folder(base)  # what is wrong with it is said before rows are fetched
    defaults = defaults_for(device, base)
    settings = SensitivitySettings(
        name=name,
        base_model=base or defaults["base_model"],
        data=source or defaults["data"],
        device=device,
        data_split=data_split,
        columns=columns,
    )
    if (settings.folder(root) / "sensitivity.json").exists():
        raise ConfigError(f"NAME: {settings.folder(root)} exists; choose another NAME")
    if base is None and device == "cpu":
        on_gpu = GPU_DEFAULTS["base_model"]
        logger.info("No GPU here: this reads the demo, a tiny GPT-2. On a GPU it reads %s.", on_gpu)
    return settings


def run(settings: SensitivitySettings, root: Path) -> SensitivityResult:
    """Fetch, load and measure every variant in this process.

    Raises:
        ConfigError, DataError, Unreachable: see trainables.models.base_model.find and trainables.data.rows.read_rows.
        ConfigError: the base has no quantizable module.
        TrialFailed: the device has too little memory.
    """
    found = inputs.fetch(
        settings.base_model,
        settings.data,
        (root / "cache").resolve(),
        data_split=settings.data_split,
        columns=settings.columns,
    )
    import transformers

    from trainables.comparison.sensitivity import measure_all  # with PyTorch: no bad row waits for that

    transformers.logging.disable_progress_bar()  # of a file on this machine
    return SensitivityResult(settings=settings, base=measure_all(found, settings.device, _shown))


def _shown(variants: "Sequence[Variant]") -> "Iterable[Variant]":
    """The variants, with a bar on a terminal of how many are done."""
    console = Console(stderr=True)
    return track(variants, "variants", console=console, disable=not console.is_terminal)


def write(result: SensitivityResult, root: Path) -> list[Path]:
    """Write the figures, the table and, last, the whole as JSON; returns the files."""
    from orchestrator.sensitivity import heat_map  # which draws: no bad setting waits for that

    folder = result.settings.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    flat, whole = folder / "sensitivity.parquet", folder / "sensitivity.json"
    pq.write_table(pa.Table.from_pylist(result.base.rows()), flat)
    pictures = heat_map.write(result.base, folder)
    whole.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    return [flat, whole, *pictures]


def publish(result: SensitivityResult, root: Path, files: list[Path]) -> str | None:
    """Write the MLflow run; returns its page under `make ui`, None where it could not be written."""
    from orchestrator.tracking.client import log_run  # with MLflow, which takes seconds

    base, settings = result.base, result.settings
    metrics = [("unquantized_loss_nats", base.unquantized_loss_nats, 0)]
    for row in base.rows():  # blocks are MLflow's steps, so that it draws a line over them
        name = f"{row['scope']}/{row['kind']}" if row["kind"] else row["scope"]
        for measure in ("loss_nats", "kl_nats", "cosine"):
            metrics.append((f"{name}/{measure}", row[measure], row["block"] or 0))
    return log_run(
        root,
        name=settings.name,
        tags={"kind": "sensitivity", "weights": base.workload.weights, "mlflow.note.content": f"**{base.caption}**"},
        params=asdict(settings) | {"compute_dtype": base.workload.compute_dtype, **base.environment},
        metrics=metrics,
        artifacts=files,
    )


def table(base: "BaseSensitivity") -> Table:
    """Everything, each kind, and the blocks breakdown most: what each costs alone, and what all but it costs."""
    title = "What 4 bits cost, part by part, without training\n(more loss and KL in nats)"
    shown = Table(title=title, caption=base.caption, box=SIMPLE, padding=(0, 1, 0, 0))
    shown.add_column("part")
    for side in ("alone", "all but it"):
        for figure in ("loss", "KL", "cosine"):
            shown.add_column(f"{side}\n{figure}", justify="right")
    shown.add_row("all", *_cells(base.of("all")), end_section=True)
    for kind in base.kinds:
        shown.add_row(kind, *_cells(base.of("kind", kind=kind)), *_cells(base.of("all_but_kind", kind=kind)))
    shown.add_section()
    most_sensitive = sorted(base.blocks, key=lambda block: -base.of("block", block).kl_nats)
    for block in most_sensitive[:N_BLOCKS_SHOWN]:
        shown.add_row(f"block {block}", *_cells(base.of("block", block)), *_cells(base.of("all_but_block", block)))
    return shown


def _cells(s: "Sensitivity") -> tuple[str, str, str]:
    return f"{s.loss_nats:+.5f}", f"{s.kl_nats:.6f}", f"{s.cosine:.6f}"


def print_result(result: SensitivityResult, root: Path, run_page: str | None) -> None:
    """The table on standard output, and where to look further."""
    base, folder = result.base, result.settings.folder(root)
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file has no edge to wrap at
    console.print(table(base))
    print(f"{len(base.variants)} variants in {base.variants_seconds:.1f} s, {base.n_response_tokens} tokens each")
    print(f"loss of the unquantized base: {base.unquantized_loss_nats:.4f} nats")
    print(f"heat map and more: {from_here(folder)}")
    if run_page:
        print(f"look further: {pages()}, then {run_page}")
