"""The learning rate of each step, as transformers' schedules of the same names give it."""

from math import ceil, cos, pi

from trainables.values.config import TrialConfig


def rate_at(config: TrialConfig, step: int) -> float:
    """The learning rate of a trial's optimizer step.

    It rises in a straight line from 0 over the first `warmup_share` of the steps, whose number is rounded up; then it
    stays ("constant"), falls in a straight line to 0 ("linear"), or along half a cosine to 0 ("cosine"; Loshchilov &
    Hutter 2017, arXiv:1608.03983, equation 5 without restarts).

    Args:
        step: counted from 0.
    """
    n_warmup = ceil(config.max_steps * config.warmup_share)
    if step < n_warmup:
        return config.learning_rate * step / n_warmup
    done = (step - n_warmup) / (config.max_steps - n_warmup)
    if config.schedule == "linear":
        return config.learning_rate * (1 - done)
    if config.schedule == "cosine":
        return config.learning_rate * (1 + cos(pi * done)) / 2
    return config.learning_rate
