"""Why a sweep has no front: what was asked of its trials, and which came nearest. Pure."""

from collections.abc import Sequence

from orchestrator.analysis.costs import Predict
from orchestrator.analysis.front import counted, dissimilarity, is_candidate
from orchestrator.settings import SweepSettings
from trainables.values.config import FINAL_STATES
from trainables.values.results import TrialResult


def nothing_counts(trials: Sequence[TrialResult], settings: SweepSettings, predict: Predict) -> str | None:
    """One or two sentences on why no trial counts, with the least violated config; None where one does.

    The nearest to the similarity asked for is the least violated; where none was compared, the refused config that
    needs the least memory; else what became of the trials is said.

    Args:
        predict: peak memory of a config in MiB, None where it is not known.
    """
    ended = [t for t in trials if t.is_of_search and t.state in FINAL_STATES]
    if not ended or counted(trials, settings):
        return None
    gaps = {t.number: dissimilarity(t, settings.min_similarity) for t in ended if is_candidate(t)}
    missed = [t for t in ended if (gaps.get(t.number) or 0.0) > 0]
    if missed:
        nearest = min(missed, key=lambda t: (gaps[t.number] or 0.0, t.number))
        reached = settings.min_similarity - (gaps[nearest.number] or 0.0)
        return (
            f"No trial keeps the similarity asked for (min_similarity {settings.min_similarity:g}). The nearest is "
            f"{_config(nearest)}: its cosine to the 16-bit baseline is at least {reached:.4f}."
        )
    refused = [t for t in ended if t.state == "refused"]
    if refused and not any(t.state == "completed" for t in ended):
        least = min(refused, key=lambda t: (predict(t.config) or float("inf"), t.number))
        no_room = f"No trial completed: {len(refused)} do not fit the device."
        return f"{no_room} The nearest is {_config(least)}: {least.reason}."
    counts = {state: sum(t.state == state for t in ended) for state in sorted({t.state for t in ended})}
    last = next((t for t in reversed(ended) if t.reason), None)
    said = ", ".join(f"{n} {state}" for state, n in counts.items())
    reason = f" The last reason: {last.reason}." if last else ""
    return f"No trial has all the objectives ({said}).{reason}"


def _config(trial: TrialResult) -> str:
    c = trial.config
    return (
        f"trial {trial.number} ({c.precision}, rank {c.rank}, alpha {c.alpha:g}, learning rate {c.learning_rate:.1e})"
    )
