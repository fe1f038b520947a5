"""Why a sweep has no front: what was asked of its trials, and which came nearest. Pure."""

from collections import Counter
from collections.abc import Sequence
from operator import attrgetter, itemgetter

from orchestrator.analysis.costs import Predict
from orchestrator.analysis.describe import describe
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
    ended = [trial for trial in trials if trial.is_of_search and trial.state in FINAL_STATES]
    if not ended or counted(trials, settings):
        return None
    missed = []
    for trial in filter(is_candidate, ended):
        gap = dissimilarity(trial, settings.min_similarity)
        if gap is not None and gap > 0:
            missed.append((gap, trial.number, trial))
    if missed:
        gap, _, nearest = min(missed, key=itemgetter(0, 1))
        return (
            f"No trial keeps the similarity asked for (min_similarity {settings.min_similarity:g}). The nearest is "
            f"{_named(nearest)}: its cosine to the 16-bit baseline is at least {settings.min_similarity - gap:.4f}."
        )
    counts = Counter(map(attrgetter("state"), ended))
    if counts["refused"] and not counts["completed"]:
        refused = [trial for trial in ended if trial.state == "refused"]
        least = min(refused, key=lambda trial: (predict(trial.config) or float("inf"), trial.number))
        no_room = f"No trial completed: {len(refused)} do not fit the device."
        return f"{no_room} The nearest is {_named(least)}: {least.reason}."
    said = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
    *_, last = ["", *filter(None, map(attrgetter("reason"), ended))]
    reason = f" The last reason: {last}." if last else ""
    return f"No trial has all the objectives ({said}).{reason}"


def _named(trial: TrialResult) -> str:
    return f"trial {trial.number} ({describe(trial.config)})"
