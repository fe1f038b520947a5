"""A config and its figures in a few words, the same wherever a trial is named. Pure."""

from collections.abc import Iterable
from typing import Any

from orchestrator.objectives import OBJECTIVES
from trainables.models.families import all_targets
from trainables.values.config import BITS, Precision, TrialConfig
from trainables.values.findings import Estimate


def describe(config: TrialConfig) -> str:
    """What tells a sweep's trials apart at a glance.

    >>> describe(TrialConfig(precision="nf4", rank=4, alpha=8, targets=("attn.c_attn",)))
    '4 bits, rank 4, alpha 8, learning rate 2.0e-04, targets attn.c_attn'
    """
    bits = BITS[config.precision] + (f" but {' '.join(config.keep_16bit)} at 16" if config.keep_16bit else "")
    return (
        f"{bits}, rank {config.rank}, alpha {config.alpha:g}, "
        f"learning rate {config.learning_rate:.1e}, targets {targets(config)}"
    )


def targets(config: TrialConfig) -> str:
    """Names of the target modules in little room."""
    return "all" if all_targets(config.targets) else " ".join(config.targets)


def ranks(configs: Iterable[TrialConfig]) -> str:
    """Which ranks some trials have, by precision.

    >>> few = [TrialConfig(precision="nf4", rank=rank, alpha=8) for rank in (16, 4)]
    >>> ranks(few), ranks([*few, TrialConfig(precision="16bit", rank=2, alpha=8)])
    ('4 bits at rank 4 to 16', '4 bits at rank 4 to 16, 16 bits at rank 2')
    """
    found: dict[Precision, set[int]] = {}
    for config in configs:
        found.setdefault(config.precision, set()).add(config.rank)
    said = []
    for precision, bits in BITS.items():
        if precision in found:
            low, high = min(found[precision]), max(found[precision])
            said.append(f"{bits} at rank {low}" + (f" to {high}" if high > low else ""))
    return ", ".join(said)


def every_setting(config: TrialConfig) -> str:
    """All of them, each as name=value."""
    return " ".join(f"{name}={text_of(value)}" for name, value in config.to_dict().items())


def text_of(value: Any) -> str:
    """A setting's value as one word, the items of a list joined by a plus."""
    return "+".join(value) if isinstance(value, list) else str(value)


def heading_of(objective: str) -> str:
    """Of a column of its values, with the unit."""
    return OBJECTIVES[objective].heading


def shown(objective: str, value: float | None) -> str:
    """A value in the unit of that heading."""
    return OBJECTIVES[objective].shown(value)


def interval(estimate: Estimate, form: str = ".4f") -> str:
    """A value with the ends of its interval, where that is not withheld."""
    ends = "no interval" if estimate.low is None else f"{estimate.low:{form}} to {estimate.high:{form}}"
    return f"{estimate.value:{form}} ({ends})"
