"""What a trial is asked to do, and on what: frozen, keyword-only, standard library only.

One name is used here, in Ray Tune's results, in the ledger, as MLflow key, as Parquet column and in the figures.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import sqrt
from typing import Any, Literal, get_args

from trainables.values.errors import ConfigError, did_you_mean

PROTOCOL_VERSION = 2
"""Version of what every metric means. Results of different versions are never compared; what changed with each is in
CHANGELOG.md."""

Precision = Literal["16bit", "nf4"]
BITS: Mapping[Precision, str] = {"nf4": "4 bits", "16bit": "16 bits"}
"""A precision in words, for people."""
EngineName = Literal["eager", "graph"]
Loop = Literal["standard", "lean"]
Schedule = Literal["constant", "linear", "cosine"]
OptimizerName = Literal["adamw", "adamw_8bit"]
State = Literal["queued", "running", "completed", "pruned", "refused", "oom", "diverged", "failed"]
Origin = Literal["search", "baseline", "baseline replicate", "replicate"]
ComputeDtype = Literal["bfloat16", "float16", "float32"]
RowKind = Literal["Alpaca", "chat", "completion"]
Weights = Literal["pretrained", "random", "stand-in", "demo"]
RANDOM_PREFIX = "random:"
"""Begins the name of a base whose weights are drawn: a folder with a config and a tokenizer alone follows."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "precision": get_args(Precision),
    "engine": get_args(EngineName),
    "loop": get_args(Loop),
    "schedule": get_args(Schedule),
    "optimizer": get_args(OptimizerName),
}
"""Settings that are one of a few words."""

BaseForm = tuple[Precision, tuple[str, ...]]
"""The precision of a base, and the modules that stay at 16 bits all the same, see TrialConfig.keep_16bit."""
NAME_LISTS = frozenset({"targets", "keep_16bit"})
REAL_NUMBERS = ("alpha", "dropout", "learning_rate", "warmup_share")
LATER_FIELDS: Mapping[str, Any] = {
    "schedule": "constant",
    "warmup_share": 0.0,
    "gradient_checkpointing": False,
    "optimizer": "adamw",
    "keep_16bit": (),
}
"""Fields that a config's JSON leaves out at their default, so that configs without them keep their key."""

MAX_WHOLE = 2**31 - 1
"""Largest rank, batch size, length or number of steps that a config may ask for."""

MAX_REAL = 1e30
"""Largest alpha and learning rate; float32 arithmetic on larger ones raises instead of diverging."""

LOSS_CHUNK_TOKENS = 256
"""Supervised tokens whose logits the lean loss makes at once, see trainables.models.chunked_loss."""

FINAL_STATES = frozenset(get_args(State)) - {"queued", "running"}


def rungs(max_steps: int) -> tuple[int, ...]:
    """Steps at which a trial is measured and may be pruned: an eighth, a quarter, half, all.

    >>> rungs(200)
    (25, 50, 100, 200)
    """
    first = -(-max_steps // 8)
    return (*(step for step in (first, 2 * first, 4 * first) if step < max_steps), max_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialConfig:
    """Everything that decides one trial's outcome.

    Attributes:
        precision: of the frozen base; "16bit" is Workload.compute_dtype, "nf4" is 4-bit NormalFloat in blocks of 64
            with double quantization (Dettmers et al. 2023, arXiv:2305.14314, section 3).
        rank: r in W + (alpha / r) B A (Hu et al. 2021, arXiv:2106.09685, section 4.1).
        alpha: numerator of that scale; alpha / sqrt(r) where rank_stabilized.
        targets: modules that get an adapter, by the end of their names, in the order of their family (see
            trainables.models.families.ordered_targets): equal sets are equal configs.
        dropout: probability on the adapter's input; the base's own dropouts are always 0.
        rank_stabilized: scale by alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732).
        learning_rate: AdamW step size; the peak of the schedule.
        batch_size: rows a step, without accumulation.
        max_length_tokens: where training rows are cut: a row keeps its prompt and loses the end of its response.
        max_steps: optimizer steps at full budget.
        seed: of adapter weights, data order and dropout.
        engine: how a step is executed: by PyTorch operation by operation, or as a CUDA graph, see
            trainables.training.engine.
        loop: how a step is written: "standard" makes all logits, as a stock script does; "lean" makes those of
            supervised tokens only, a few at a time, see trainables.models.lean.
        schedule: of the learning rate over the steps, see trainables.training.schedule.
        warmup_share: of the steps, in which the rate rises from 0 to its peak.
        gradient_checkpointing: keep each block's input only, and run its forward pass again in the backward pass (Chen
            et al. 2016, arXiv:1604.06174).
        optimizer: "adamw_8bit" keeps AdamW's moments in 8 bits (Dettmers et al. 2022, arXiv:2110.02861), but for
            matrices of less than 4,096 elements; it runs eagerly only.
        keep_16bit: modules and blocks of the base that stay at 16 bits where precision is "nf4", by their full names,
            as trainables.models.kept puts them: equal sets are equal configs.

    Raises:
        ConfigError: a value is out of range, or two do not go together; the message names the field.
    """

    precision: Precision
    rank: int
    alpha: float
    targets: tuple[str, ...] = ("attn.c_attn",)
    dropout: float = 0.05
    rank_stabilized: bool = False
    learning_rate: float = 2e-4
    batch_size: int = 4
    max_length_tokens: int = 256
    max_steps: int = 200
    seed: int = 0
    engine: EngineName = "eager"
    loop: Loop = "standard"
    schedule: Schedule = "constant"
    warmup_share: float = 0.0
    gradient_checkpointing: bool = False
    optimizer: OptimizerName = "adamw"
    keep_16bit: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(f"no {name} {value!r}{did_you_mean(str(value), allowed)}")
        for name in ("rank", "batch_size", "max_length_tokens", "max_steps"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MAX_WHOLE:
                raise ConfigError(
                    f"{name} must be a whole number of at least 1 (and at most {MAX_WHOLE}), got {value!r}"
                )
        if type(self.seed) is not int or not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be a whole number from 0 to 2**32 - 1, got {self.seed!r}")
        for name in ("alpha", "learning_rate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_REAL:
                raise ConfigError(f"{name} must be positive and finite (at most {MAX_REAL:g}), got {value!r}")
        for name in ("dropout", "warmup_share"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                raise ConfigError(f"{name} must be at least 0 and under 1, got {value!r}")
        for name in ("rank_stabilized", "gradient_checkpointing"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {getattr(self, name)!r}")
        self._check_names("targets")
        if not self.targets:
            raise ConfigError(f"targets must name at least one module, got {self.targets!r}")
        self._check_names("keep_16bit")
        if self.keep_16bit and self.precision == "16bit":
            raise ConfigError("keep_16bit names modules of a 4-bit base, and precision is 16bit; leave one of them out")
        if self.optimizer == "adamw_8bit" and self.engine == "graph":
            raise ConfigError(
                "optimizer adamw_8bit takes its step and rate from Python, which a CUDA graph would freeze; it needs "
                "engine: eager"
            )

    def _check_names(self, field: str) -> None:
        names = getattr(self, field)
        if not isinstance(names, tuple) or not all(isinstance(name, str) and name for name in names):
            raise ConfigError(f"{field} must be names of modules, got {names!r}")
        if len(set(names)) < len(names):
            raise ConfigError(f"{field} must be distinct, got {names!r}")

    @property
    def scaling(self) -> float:
        """Factor on B A: alpha / r, or alpha / sqrt(r) where rank_stabilized."""
        return self.alpha / (sqrt(self.rank) if self.rank_stabilized else self.rank)

    @property
    def cost_key(self) -> str:
        """Name of what memory and time depend on; trials that share it share one measurement."""
        return _cost_key(*(getattr(self, name) for name in COST_FIELDS), self.dropout > 0)

    @property
    def at_other_precision(self) -> "TrialConfig":
        """The same config at the other precision: a 4-bit trial's 16-bit baseline, and vice versa.

        A 16-bit trial may be the baseline of several, which differ in what they keep at 16 bits.
        """
        return self.at("16bit" if self.precision == "nf4" else "nf4")

    def at(self, precision: Precision) -> "TrialConfig":
        """The same config at a precision; at 16 bits there is nothing to keep."""
        return replace(self, precision=precision, keep_16bit=self.keep_16bit if precision == "nf4" else ())

    @property
    def base_form(self) -> "BaseForm":
        """What the base must be loaded as; trials that share it share one copy on a device."""
        return self.precision, self.keep_16bit

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` reads it back. Equal configs give equal JSON: 16 and 16.0 are one."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}  # asdict takes several times longer
        for name in REAL_NUMBERS:
            plain[name] = float(plain[name])
        for name, default in LATER_FIELDS.items():
            if plain[name] == default:
                del plain[name]
        for name in NAME_LISTS & plain.keys():
            plain[name] = list(plain[name])
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrialConfig":
        """Build from plain values, as read from YAML or JSON.

        Raises:
            ConfigError: an unknown field (nearest name offered), or a value out of range.
        """
        settings = cls.__dataclass_fields__
        for name in values:
            if name not in settings:
                raise ConfigError(f"no trial setting {name!r}{did_you_mean(name, settings)}")
        missing = [name for name in ("precision", "rank", "alpha") if name not in values]
        if missing:
            raise ConfigError(f"{missing[0]} is missing from the trial's settings")
        plain = dict(values)
        for name in NAME_LISTS & plain.keys():
            if isinstance(plain[name], list):
                plain[name] = tuple(plain[name])
        return cls(**plain)


COST_FIELDS = (
    "precision",
    "rank",
    "targets",
    "batch_size",
    "max_length_tokens",
    "engine",
    "loop",
    "gradient_checkpointing",
    "optimizer",
    "keep_16bit",
)
"""What memory and time depend on, beside whether there is dropout."""


@lru_cache(maxsize=4096)  # a report asks ten times for each of its trials, which have far fewer cost keys
def _cost_key(*values: Any) -> str:
    named = dict(zip((*COST_FIELDS, "dropout"), values, strict=True))
    return canonical_json({name: value for name, value in named.items() if value != LATER_FIELDS.get(name, ...)})


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
