"""A config in a few words, the same wherever a trial is named. Pure."""

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
