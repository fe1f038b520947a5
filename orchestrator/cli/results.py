"""The results that `--json` prints, by command, and their JSON Schema, which `qlora-sweep schema` writes."""

from typing import (
    Any,
    NotRequired,  # those that pydantic takes before Python 3.12
)
from urllib.parse import quote

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from orchestrator.analysis.overview import Overview, State
from orchestrator.analysis.status import Status
from orchestrator.cli.output import SCHEMA_VERSION
from orchestrator.report.values import SweepReport
from trainables.values.spans import Span

Config = dict[str, Any]
"""Fields of orchestrator's TrialConfig by name."""
Values = dict[str, float | None]
"""By name of an objective, in the unit that the name ends in."""


class Fault(TypedDict):
    """`kind` is a class of trainables.values.errors, or UsageError or Interrupted; `message` says what to do."""

    kind: str
    message: str


class Error(TypedDict):
    error: Fault
    exit_code: int


class Swept(TypedDict):
    """Of run and resume; `error` says why the exit code is not 0 although there is a result."""

    name: str
    mlflow_run: str | None
    objectives: list[str]
    noise: list[dict[str, Any]]
    reference_point: list[float] | None
    hypervolume: float | None
    members: list[dict[str, Any]]
    nearly: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]
    search_ended: dict[str, Any] | None
    empty_because: str | None
    failed_evaluations: list[dict[str, Any]]
    error: Fault | None
    exit_code: int


class Plan(TypedDict):
    """Of run --dry-run; the peaks are those on a GPU, whatever the sweep's device, and of --gpu whether they fit it."""

    settings: dict[str, Any]
    first_configs: list[Config]
    predicted_peak_mib: list[float | None]
    fits: list[bool | None]
    coverage: list[str]
    predicted_seconds: float | None


class Best(TypedDict):
    """`code` is Python for peft, or with --as the YAML of that program."""

    name: str
    number: int
    key: str
    config: Config
    values: Values
    why: str
    sure: str
    verdict: str | None
    state: State
    code: str


class Compared(TypedDict):
    """Of report with two names: each as of report with one."""

    sweeps: list[dict[str, Any]]


class Exported(TypedDict):
    """Of export; the last two with --check, --push."""

    trial: int
    key: str
    why: str
    eval_loss_nats: float
    reloaded_loss_nats: NotRequired[float]
    url: NotRequired[str]


class Part(TypedDict):
    part: str
    text: str


class Verified(TypedDict):
    name: str
    trials: int
    whole: bool
    differences: list[Part]
    before_repair: list[Part] | None


class Answered(TypedDict):
    """Of cells of grids, each named in words."""

    sweeps: list[str]
    commands: list[str]
    base_model: str
    cells: list[dict[str, Any]]
    by_rank: list[dict[str, Any]]
    against_all: list[dict[str, Any]]
    cosines: list[dict[str, Any]]
    sufficient_ranks: list[dict[str, Any]]
    rates: list[dict[str, Any]]
    rate_spreads: dict[str, dict[str, float]]
    kept: list[dict[str, Any]]
    tokens: list[dict[str, Any]]
    savings: list[dict[str, Any]]
    paying_rows: dict[str, list[dict[str, Any]]]
    layers: str | None


class Point(TypedDict):
    """Of fit, one recipe."""

    precision: str
    loop: str
    batch_size: int
    max_length_tokens: int
    gradient_checkpointing: bool
    prepare_kbit: bool
    double_quantization: bool
    rank: int
    targets: list[str]
    compute_dtype: str
    optimizer: str
    peak_mib: float
    resident_mib: float
    breakdown: dict[str, float]
    fits: bool | None
    largest_batch: int | None


class FitsOne(Point):
    """Of fit, where one recipe is asked for."""

    model: str
    weights: int
    memory_mib: float | None


class Fits(TypedDict):
    """Of fit, where several are."""

    model: str
    weights: int
    memory_mib: float | None
    points: list[Point]
    four_bits: list[dict[str, Any]]


class Sensitivity(TypedDict):
    """Of sensitivity; with the settings of the run, what the base is and where it was measured."""

    name: str
    variants: list[dict[str, Any]]
    folder: str
    mlflow_run: str | None


class Listed(TypedDict):
    """Of list; `state` is running, finished, stopped or unreadable."""

    sweeps: list[Overview]


class Stopped(TypedDict):
    name: str
    stopped: bool
    process: int


class Deleted(TypedDict):
    """Of delete; `mlflow_runs` is how many."""

    name: str
    deleted: str
    mlflow_runs: int


class Synced(TypedDict):
    """Of sync; `mlflow_run` is the page under `qlora-sweep ui`, or the run's id on another server."""

    name: str
    mlflow_run: str


class Carded(TypedDict):
    """Of card: the file that was written."""

    name: str
    card: str


class Begun(TypedDict):
    """Of init: the files, None of what --only left out, and the command to go on with."""

    space: str | None
    data: str | None
    dry_run: str


def _keys_of(name: str, fields: dict[str, Any]) -> Any:
    """A TypedDict of the keys that another value has, so that they stand in one place."""
    return TypedDict(name, fields)  # type: ignore[operator]


RESULTS: dict[str, Any] = {
    "run": Swept,
    "resume": Swept,
    "run --dry-run": Plan,
    "status": _keys_of(
        "Progress", {"name": str, "state": State, **Status.__annotations__, "timeline": list[Span] | None}
    ),
    "best": Best,
    "fit": FitsOne | Fits,
    "report": _keys_of("Reported", dict.fromkeys(SweepReport.__dataclass_fields__, Any)),
    "report A B": Compared,
    "export": Exported,
    "sensitivity": Sensitivity,
    "verify": Verified,
    "answers": Answered,
    "list": Listed,
    "stop": Stopped,
    "delete": Deleted,
    "init": Begun,
    "sync": Synced,
    "card": Carded,
    "error": Error,
}
"""By command -> what it prints; "error" is of every command."""


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of them all: one definition for each command, and for what those are made of."""
    definitions: dict[str, Any] = {}
    for command, result in RESULTS.items():
        found = TypeAdapter(result).json_schema()
        definitions |= found.pop("$defs", {})
        definitions[command] = found
    version = {"properties": {"schema_version": {"const": SCHEMA_VERSION}}, "required": ["schema_version"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What qlora-sweep COMMAND --json prints",
        **version,
        "anyOf": [{"$ref": f"#/$defs/{quote(command)}"} for command in RESULTS],
        "$defs": definitions,
    }
