"""A config and its figures in a few words, the same wherever a trial is named. Pure."""

from typing import Any

from orchestrator.objectives import OBJECTIVES
from trainables.models.families import all_targets
from trainables.values.config import BITS, TrialConfig


def describe(config: TrialConfig) -> str:
    """What tells a sweep's trials apart at a glance.

    >>> describe(TrialConfig(precision="nf4", rank=4, alpha=8, targets=("attn.c_attn",)))
    '4 bits, rank 4, alpha 8, learning rate 2.0e-04, targets attn.c_attn'
    """
    return (
        f"{BITS[config.precision]}, rank {config.rank}, alpha {config.alpha:g}, "
        f"learning rate {config.learning_rate:.1e}, targets {targets(config)}"
    )


def targets(config: TrialConfig) -> str:
    """Names of the target modules in little room."""
    return "all" if all_targets(config.targets) else " ".join(config.targets)


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
