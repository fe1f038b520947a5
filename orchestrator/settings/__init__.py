"""Everything one sweep was asked to do: frozen, checked, kept beside its ledger for `resume`."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from orchestrator import objectives
from orchestrator.security.addresses import refuse_secrets
from search_spaces import Frozen, Space, first_fault
from trainables.data.formats import parse_columns
from trainables.models.layout import known_family
from trainables.values.config import ComputeDtype, EngineName, Loop, TrialConfig
from trainables.values.errors import ConfigError

ROOT = Path("mlflow_runs")
"""Where all state lives, relative to the working directory."""
RECORDED = "recorded"
"""Folder there of sweeps that git keeps."""

ADDRESSES = ("base_model", "data", "data_split", "columns", "address", "storage", "tracking_uri")
"""Settings that name a place or a part of one, and are kept and shown."""

KIND_PREFIX = "accelerator_type:"
"""Of the resource that Ray gives a node for its kind of GPU: T4, A100, H200, ..."""

FLAT_TRIALS = 8
"""Fewest completed trials over which the front's growth is looked at, see stop_when_flat."""


def check_name(name: str, what: str = "name") -> str:
    """A name that can be a folder's; `what` it was given as, a field or an argument, begins the error."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        allowed = "1 to 64 letters, digits, '.', '_' or '-', starting with one of the first two"
        raise ConfigError(f"{what} must be {allowed}, got {name!r}")
    return name


def _check_objectives(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        objectives.named(name)
    return names


def _names(names: object) -> object:
    """Names as a tuple; several may be one text, with commas between them."""
    if isinstance(names, str):
        names = (names,)
    if not isinstance(names, Iterable):
        return names
    found: list[object] = []
    for name in names:
        found += filter(None, map(str.strip, name.split(","))) if isinstance(name, str) else [name]
    return tuple(dict.fromkeys(found))


def _columns_text(columns: object) -> object:
    """The mapping as text, checked; from Python it may come as a dict, too."""
    if isinstance(columns, Mapping):
        columns = ",".join(f"{field}={column}" for field, column in columns.items())
    if isinstance(columns, str):
        parse_columns(columns)
    return columns


class SweepSettings(Frozen):
    """One sweep. Each field is an option of `run`, with its description as help; see orchestrator.cli.options.

    Attributes:
        space: itself, so that a later edit of its file changes nothing.
        base_model, data: sources as in trainables.models.base_model.find and trainables.data.rows.read_rows.
        data_split: see trainables.data.hub.fetch_rows.
        columns: see trainables.data.formats.parse_columns; from Python as a dict, too.
        gpus_per_trial, device_kind: a share, or a whole number; as Ray names it, None takes any.
        compute_dtype: "auto" is the protocol's choice for the device.
        engine, loop: of every trial, unless the space says otherwise; so is the seed.
        address, storage: None starts Ray on this machine; None sends adapters through Ray.
        objectives: maximised ones are negated inside.
        min_similarity: of embedding_cosine, by its interval; None asks for none.
        verdict_margin: see orchestrator.analysis.lost_share.
        verdict_seeds: seeds of the best 4-bit finalist that are trained at both precisions, its own included; None is
            what orchestrator.analysis.finalists.n_verdict_seeds says.
        finalist_seeds: these follow a finalist's own; 1 is the run that made it a finalist.
        tracking_uri: None is the SQLite file under the root. It stands in no dump of the settings.
        max_gpu_hours, max_hours: test evaluations are included too; the search ends early enough. Pauses before a
            resume do not count.
    """

    name: Annotated[str, AfterValidator(check_name)] = Field(description="of the sweep; default: space and time")
    space: Space = Field(description="search space: demo, diagnostic, pareto, or a path to a .yaml")
    n_trials: int = Field(
        ge=1, le=100_000, description="configs to try; completed 4-bit ones add their 16-bit baseline"
    )
    max_steps: int | None = Field(default=None, ge=1, description="steps of a full trial, in place of the space's")
    base_model: str = Field(min_length=1, description="hub id, folder, random:FOLDER or demo")
    data: str = Field(min_length=1, description="hub id, file of JSON, JSON Lines, CSV or Parquet, or demo")
    data_split: str | None = Field(
        default=None, min_length=1, description="of a data set on the hub: SPLIT, CONFIG/SPLIT; default: train"
    )
    columns: Annotated[str | None, BeforeValidator(_columns_text)] = Field(
        default=None, description="other column names of the data: instruction=question,output=answer"
    )
    device: Literal["cuda", "cpu"] = Field(description="cuda or cpu; default: what the machine has")
    gpus_per_trial: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="share of a GPU for each trial")
    device_kind: str | None = Field(
        default=None, min_length=1, description="the one kind of GPU to run on in a mixed cluster: T4, A100, H200 ..."
    )
    compute_dtype: ComputeDtype | Literal["auto"] = Field(
        default="auto", description="bfloat16, float16 or float32; default: the protocol's"
    )
    engine: EngineName = Field(
        default="eager", description="graph (captured steps, needs a GPU) or eager; default: what is faster"
    )
    loop: Loop = Field(default="standard", description="lean, or standard, a stock script's; default: lean")
    address: str | None = Field(default=None, description="of a running Ray cluster: auto, HOST:PORT")
    storage: str | None = Field(
        default=None, min_length=1, description="s3://, gs:// or a shared folder that workers write adapters to"
    )
    objectives: Annotated[tuple[str, ...], AfterValidator(_check_objectives)] = Field(
        default=objectives.DEFAULT,
        min_length=1,
        description="of the front; repeat for several; default: memory, time on a GPU, and loss",
    )
    min_similarity: float | None = Field(
        default=None, ge=0, le=1, description="4-bit trials less like their baseline enter no front; default: no limit"
    )
    verdict_margin: float = Field(
        default=0.05, gt=0, lt=1, description="share of what tuning gains that 4 bits may lose and still be 'kept'"
    )
    verdict_seeds: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="seeds at both precisions behind the verdict on 4 bits; default: 3, or 1 where that takes long",
    )
    asynchronous: bool = Field(
        default=False,
        description="let search and stopping rule learn of each result at once; then timing decides what is proposed",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the trials and the sampler")
    finalist_seeds: int = Field(
        default=1,
        ge=1,
        le=100,
        description="runs of each finalist, under other seeds; 3 or more decide on ranks, by one run more of each",
    )
    baseline_seeds: int = Field(
        default=2,
        ge=2,
        le=100,
        description="other seeds of a 4-bit finalist's baseline, which show what a seed alone moves",
    )
    tracking_uri: str | None = Field(
        default=None, exclude=True, repr=False, description="of MLflow; default: mlflow_runs/mlflow.db"
    )
    insecure: bool = Field(default=False, description="join a Ray cluster that asks for no token")
    max_gpu_hours: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="budget of GPU time, the finalists' seed replicates included",
    )
    max_hours: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="budget of wall-clock time, the same"
    )
    max_usd: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="budget in money; needs --usd-per-gpu-hour"
    )
    usd_per_gpu_hour: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="what a GPU costs")
    stop_when_flat: bool = Field(default=False, description="end when the front's hypervolume hardly grows any more")
    allow_partial_targets: bool = Field(default=False, description="adapt targets that some of the base's blocks lack")
    keep_16bit: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        default=(),
        description="modules or blocks that stay at 16 bits in 4-bit trials: model.layers.0,model.layers.1.mlp.up_proj",
    )
    reuse: bool = Field(default=True, description="reuse what another sweep under mlflow_runs/ has run")
    reuse_across_versions: bool = Field(
        default=False, description="reuse also what ran under other versions of PyTorch and the like"
    )
    warm_start: Annotated[str, AfterValidator(check_name)] | None = Field(
        default=None, description="name of a sweep over the same space that the sampler learns from"
    )

    @model_validator(mode="after")
    def _without_secrets(self) -> "SweepSettings":
        refuse_secrets_in({field: getattr(self, field) for field in ADDRESSES})
        return self

    @property
    def resources(self) -> dict[str, float]:
        """What Ray reserves for one trial."""
        if self.device == "cpu":
            return {"cpu": 1}
        kind = {} if self.device_kind is None else {KIND_PREFIX + self.device_kind: 0.001}
        return {"cpu": 1, "gpu": self.gpus_per_trial, **kind}

    @staticmethod
    def kinds_of(resources: Iterable[str]) -> set[str]:
        """Kinds of device among the names of a node's resources, as Ray names them."""
        return {name.removeprefix(KIND_PREFIX) for name in resources if name.startswith(KIND_PREFIX)}

    @property
    def first_config(self) -> TrialConfig:
        """The trial at the space's first point."""
        return self.config(self.space.first_point)

    @property
    def longest_steps(self) -> int:
        """Steps of the longest trial: a space may search them."""
        searched = self.space.parameters.get("max_steps")
        return self.max_steps or (max(map(int, searched.samples)) if searched else self.first_config.max_steps)

    @property
    def lengths_tokens(self) -> tuple[int, ...]:
        """Every max_length_tokens that the space lists, both ends of a range, or the one that all trials have."""
        searched = self.space.parameters.get("max_length_tokens")
        return tuple(map(int, searched.samples)) if searched else (self.first_config.max_length_tokens,)

    def config(self, params: dict[str, Any]) -> TrialConfig:
        """The trial that a point of the space stands for in this sweep."""
        overrides = {}
        for name in ("seed", "engine", "loop", "keep_16bit"):
            if name not in self.space.parameters and name not in self.space.fixed:
                overrides[name] = getattr(self, name)
        if self.max_steps is not None:
            overrides["max_steps"] = self.max_steps
        return self.space.config(params, **overrides)


def refuse_secrets_in(values: Mapping[str, str | None]) -> None:
    """Refuse addresses that carry a password or a token.

    Raises:
        ConfigError: one does; the message names its setting.
    """
    for field, value in values.items():
        if value is not None:
            refuse_secrets(field, value)


def make(**values: Any) -> SweepSettings:
    """Check settings.

    Raises:
        ConfigError: a value is out of range or a name is unknown; the message names the field.
    """
    try:
        settings = SweepSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(first_fault(error, SweepSettings)) from None
    if family := known_family(settings.base_model):
        settings = settings.model_copy(update={"space": settings.space.for_family(family)})
    if settings.device == "cpu" and settings.first_config.engine == "graph":
        raise ConfigError("engine is graph, which needs a CUDA GPU; here it can be eager")
    _check_kept(settings)
    if settings.gpus_per_trial > 1 and not settings.gpus_per_trial.is_integer():
        raise ConfigError(f"gpus_per_trial over 1 must be a whole number, got {settings.gpus_per_trial:g}")
    if settings.device_kind is not None and settings.device == "cpu":
        raise ConfigError(f"device_kind is {settings.device_kind!r}, but trials run on the CPU")
    if settings.reuse_across_versions and not settings.reuse:
        raise ConfigError("reuse_across_versions is set, but reuse is off; leave one of them out")
    _check_budgets(settings)
    return settings


def _check_kept(settings: SweepSettings) -> None:
    """Refuse modules to keep at 16 bits where the space names some itself, or has no trial at 4 bits."""
    if not settings.keep_16bit:
        return
    if "keep_16bit" in {*settings.space.parameters, *settings.space.fixed}:
        raise ConfigError(f"keep_16bit is said, and space {settings.space.name} has it too; leave one of them out")
    if settings.first_config.precision == "16bit":
        raise ConfigError(
            f"keep_16bit is {','.join(settings.keep_16bit)!r}, but every trial of space {settings.space.name} is at 16 "
            "bits; leave it out"
        )


def _check_budgets(settings: SweepSettings) -> None:
    """Refuse budgets that contradict each other or can never be reached."""
    for field in ("max_gpu_hours", "max_usd", "usd_per_gpu_hour"):
        value = getattr(settings, field)
        if value is not None and settings.device == "cpu":
            raise ConfigError(f"{field} is {value:g}, but trials run on the CPU; give max_hours")
    if settings.max_usd is not None and settings.usd_per_gpu_hour is None:
        raise ConfigError(f"max_usd is {settings.max_usd:g}, but what a GPU costs is not said: give usd_per_gpu_hour")
    if settings.stop_when_flat and 2 * settings.n_trials <= FLAT_TRIALS:
        raise ConfigError(
            f"stop_when_flat looks back over {FLAT_TRIALS} completed trials, but n_trials is {settings.n_trials} "
            "(baselines make it twice that at most); leave one of them out"
        )


def sweep_folder(name: str, root: Path = ROOT) -> Path:
    """Folder of one sweep's ledger, settings, adapters and figures; a name that can be none's is refused as NAME."""
    return root / "sweeps" / check_name(name, "NAME:")
