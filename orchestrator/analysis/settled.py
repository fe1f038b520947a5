"""Whether anything is still to come of a trial. Pure."""

from trainables.values.results import TrialResult


def is_settled(trial: TrialResult, baseline: TrialResult | None) -> bool:
    """Whether all that will be known of a trial is known.

    A completed 4-bit trial waits for its similarity, unless its baseline ended without an adapter.
    """
    if trial.state in ("queued", "running"):
        return False
    if trial.state != "completed" or trial.config.precision == "16bit" or trial.similarity:
        return True
    return baseline is not None and baseline.state in ("refused", "oom", "diverged", "failed")
