"""Where in the base 4 bits shows, without training: a table, a heat map, files and an MLflow run."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track
from rich.table import Table

from orchestrator.command import pages
from orchestrator.driver.plan import GPU_DEFAULTS, defaults_for, need_gpu
from orchestrator.security.addresses import refuse_secrets
from orchestrator.settings import sweep_folder
from trainables.cost.device import count_gpus, environment, native_dtype
from trainables.data import tokens as data
from trainables.models import base_model, inputs
from trainables.values.config import Workload
from trainables.values.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from trainables.comparison.sensitivity import Sensitivity

logger = logging.getLogger(__name__)

MEASURES = ("loss_nats", "kl_nats", "cosine")
N_BLOCKS_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivitySettings:
    """What one run was asked.

    Attributes:
        name: of the run and of its folder under mlflow_runs/sensitivity.
        base_model, data: sources as in trainables.models.base_model.find and trainables.data.rows.read_rows.
        device: "cuda" or "cpu".
    """

    name: str
    base_model: str
    data: str
    device: str

    def folder(self, root: Path) -> Path:
        """Where the files go.

        Raises:
            ConfigError: the name is no folder's name.
        """
        return root / "sensitivity" / sweep_folder(self.name).name


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityResult:
    """What every variant cost.

    Attributes:
        n_rows, n_response_tokens: that were read.
        unquantized_loss_nats: of the 16-bit base on them; the variants' losses are differences to it.
        variants_seconds: wall time of all variants together, without loading.
    """

    settings: SensitivitySettings
    workload: Workload
    environment: Mapping[str, str]
    n_rows: int
    n_response_tokens: int
    unquantized_loss_nats: float
    variants_seconds: float
    variants: "tuple[Sensitivity, ...]"

    @property
    def caption(self) -> str:
        """Under what the figures were taken; says so where the weights are not pretrained ones."""
        measured = f"{self.environment['device']}, {self.workload.compute_dtype}; {self.n_rows} rows"
        return f"{self.workload.base_caption}; {measured}"

    def of(self, scope: str, block: int | None = None, kind: str | None = None) -> "Sensitivity":
        """The variant of that scope about that block and kind."""
        wanted = (scope, block, kind)
        return next(s for s in self.variants if (s.variant.scope, s.variant.block, s.variant.kind) == wanted)

    @property
    def blocks(self) -> list[int]:
        """Numbers of the blocks."""
        return [s.variant.block for s in self.variants if s.variant.scope == "block" and s.variant.block is not None]

    @property
    def kinds(self) -> list[str]:
        """Module kinds that the base has."""
        return [str(s.variant.kind) for s in self.variants if s.variant.scope == "kind"]

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a variant."""
        names = ("scope", "block", "kind", "label")
        return [
            {name: getattr(s.variant, name) for name in names}
            | {name: getattr(s, name) for name in ("n_parameters", *MEASURES)}
            for s in self.variants
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        facts = ("n_rows", "n_response_tokens", "unquantized_loss_nats", "variants_seconds", "caption")
        head = asdict(self.settings) | {name: getattr(self, name) for name in facts}
        return head | {
            "workload": asdict(self.workload),
            "environment": dict(self.environment),
            "variants": self.rows(),
        }


def choose(
    name: str | None, base: str | None, source: str | None, device: str | None, root: Path
) -> SensitivitySettings:
    """Fill in what was not said for this machine.

    Raises:
        ConfigError: an unknown or absent device, a bad name, or one that is taken.
    """
    for field, given in (("base_model", base), ("data", source)):
        refuse_secrets(field, given or "")
    if device not in (None, "cuda", "cpu"):
        raise ConfigError(f"no device {device!r}{did_you_mean(str(device), ('cuda', 'cpu'))}")
    name = name or f"sensitivity-{time.strftime('%Y%m%d-%H%M%S')}"
    need_gpu(device or "cpu")
    n_gpus = 0 if device == "cpu" else count_gpus()
    if base is not None:
        base_model.local_folder(base)  # what is wrong with it is said before rows are fetched
    defaults = defaults_for("cuda" if n_gpus else "cpu", base)
    settings = SensitivitySettings(
        name=name,
        base_model=base or str(defaults["base_model"]),
        data=source or str(defaults["data"]),
        device="cuda" if n_gpus else "cpu",
    )
    if (settings.folder(root) / "sensitivity.json").exists():
        raise ConfigError(f"NAME: {settings.folder(root)} exists; choose another NAME")
    if base is None and not n_gpus:
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
    found = inputs.fetch(settings.base_model, settings.data, (root / "cache").resolve())
    return _measure(settings, found.workload(native_dtype(settings.device)))


def _measure(settings: SensitivitySettings, workload: Workload) -> SensitivityResult:
    from trainables.comparison import sensitivity
    from trainables.trial import oom_as_failure

    rows = data.load(workload.data_folder)["validation"]
    with oom_as_failure():
        base = base_model.load(workload, "16bit", settings.device)
        variants = sensitivity.variants_of(list(sensitivity.modules_of(base)))
        begin = time.perf_counter()
        unquantized = sensitivity.read(base, rows)
        console = Console(stderr=True)
        shown = track(variants, "variants", console=console, disable=not console.is_terminal)
        measured = tuple(sensitivity.measure(base, variant, rows, unquantized) for variant in shown)
    return SensitivityResult(
        settings=settings,
        workload=workload,
        environment=environment(settings.device),
        n_rows=len(rows),
        n_response_tokens=len(unquantized.losses),
        unquantized_loss_nats=float(unquantized.losses.mean()),
        variants_seconds=time.perf_counter() - begin,
        variants=measured,
    )


def write(result: SensitivityResult, root: Path) -> list[Path]:
    """Write the figures, the table and, last, the whole as JSON; returns the files."""
    from orchestrator.sensitivity import heat_map as sensitivity_figures

    folder = result.settings.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    flat, whole = folder / "sensitivity.parquet", folder / "sensitivity.json"
    pq.write_table(pa.Table.from_pylist(result.rows()), flat)
    pictures = sensitivity_figures.write(result, folder)
    whole.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    return [flat, whole, *pictures]


def publish(result: SensitivityResult, root: Path, files: list[Path]) -> str | None:
    """Write the MLflow run; returns its page under `make ui`, None where it could not be written."""
    from orchestrator.tracking import store as tracking_store

    metrics = [("unquantized_loss_nats", result.unquantized_loss_nats, 0)]
    for s in result.variants:  # blocks are MLflow's steps, so that it draws a line over them
        name = "/".join(filter(None, (s.variant.scope, s.variant.kind)))
        metrics += [(f"{name}/{measure}", getattr(s, measure), s.variant.block or 0) for measure in MEASURES]
    workload = result.workload
    return tracking_store.log_run(
        root,
        name=result.settings.name,
        tags={"kind": "sensitivity", "weights": workload.weights, "mlflow.note.content": f"**{result.caption}**"},
        params=asdict(result.settings) | {"compute_dtype": workload.compute_dtype, **result.environment},
        metrics=metrics,
        artifacts=files,
    )


def table(result: SensitivityResult) -> Table:
    """Everything, each kind, and the blocks breakdown most: what each costs alone, and what all but it costs."""
    shown = Table(title="What 4 bits cost, part by part, without training", caption=result.caption)
    shown.add_column("part")
    for side in ("alone", "all but it"):
        for unit in ("loss, +nats", "KL, nats", "cosine"):
            shown.add_column(f"{side}\n{unit}", justify="right")

    def cells(s: "Sensitivity") -> list[str]:
        return [f"{s.loss_nats:+.5f}", f"{s.kl_nats:.6f}", f"{s.cosine:.6f}"]

    shown.add_row("all", *cells(result.of("all")), end_section=True)
    for kind in result.kinds:
        shown.add_row(kind, *cells(result.of("kind", kind=kind)), *cells(result.of("all_but_kind", kind=kind)))
    shown.add_section()
    most_sensitive = sorted(result.blocks, key=lambda block: -result.of("block", block).kl_nats)
    for block in most_sensitive[:N_BLOCKS_SHOWN]:
        shown.add_row(f"block {block}", *cells(result.of("block", block)), *cells(result.of("all_but_block", block)))
    return shown


def print_result(result: SensitivityResult, root: Path, run_page: str | None, *, as_json: bool) -> None:
    """The table on standard output, and where to look further."""
    folder = result.settings.folder(root)
    if as_json:
        print(json.dumps(result.to_dict() | {"folder": str(folder), "mlflow_run": run_page}))
        return
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file has no edge to wrap at
    console.print(table(result))
    print(f"{len(result.variants)} variants in {result.variants_seconds:.1f} s, {result.n_response_tokens} tokens each")
    print(f"loss of the unquantized base: {result.unquantized_loss_nats:.4f} nats; heat map and more: {folder}")
    if run_page:
        print(f"look further: {pages()}, then {run_page}")
