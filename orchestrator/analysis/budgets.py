"""When the search is over: its budgets, and a front that no longer grows. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, Literal

from orchestrator.analysis.front import counted, is_candidate, volume_of
from orchestrator.settings import FLAT_TRIALS, SweepSettings
from trainables.values.results import TrialResult

FLAT_SHARE = 0.1
"""Of the completed trials: over so many the front's growth is looked at, and at least over FLAT_TRIALS."""
FLAT_GROWTH = 0.01
"""Growth of the hypervolume under which a front is flat, as a share of what it is now."""
ENDED, SPENT, FINISHED = "search_ended", "spent", "finished"
"""Facts: why the search is over, what the sweep has used, and whether all that followed the search is done too."""

Why = Literal["trials", "space", "max_gpu_hours", "max_hours", "max_usd", "flat"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Why a search is over.

    Attributes:
        text: the same in words, without a full stop.
    """

    why: Why
    text: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    @classmethod
    def from_fact(cls, fact: dict[str, Any] | None) -> "Ended | None":
        return cls(**fact) if fact else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a sweep has used, or will.

    Attributes:
        device_seconds: over all tasks, times the share of a GPU that each had; of a CPU, over its workers.
        wall_seconds: of all runs of the sweep, without the pauses between.
    """

    device_seconds: float = 0.0
    wall_seconds: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            device_seconds=self.device_seconds + other.device_seconds,
            wall_seconds=self.wall_seconds + other.wall_seconds,
        )

    def usd(self, settings: SweepSettings) -> float | None:
        """What the GPUs cost; None where their price is not known."""
        price = settings.usd_per_gpu_hour
        return None if price is None else self.device_seconds / 3600 * price


def exceeded(settings: SweepSettings, spent: Spent, needs: Spent) -> Ended | None:
    """The first budget that what is spent and what is still needed reach, None where there is none."""
    used, then = _by_budget(settings, spent), _by_budget(settings, spent + needs)
    words: dict[Why, str] = {"max_gpu_hours": "GPU-hours", "max_hours": "hours", "max_usd": "USD"}
    for field, unit in words.items():
        limit = getattr(settings, field)
        if limit is not None and then[field] >= limit:
            left = (
                "is spent"
                if used[field] >= limit
                else "has no room for another trial and the finalists' seed replicates"
            )
            return Ended(why=field, text=f"the budget of {limit:g} {unit} ({field}) {left}; used {used[field]:.3g}")
    return None


def _by_budget(settings: SweepSettings, spent: Spent) -> dict[str, float]:
    hours = {"max_gpu_hours": spent.device_seconds / 3600, "max_hours": spent.wall_seconds / 3600}
    return hours | {"max_usd": spent.usd(settings) or 0.0}


def still_needed(
    settings: SweepSettings, *, seconds_per_trial: float, n_runs: int, n_evaluations: int, n_slots: int
) -> Spent:
    """What trials at work, the next one and the seed replicates of the finalists will cost.

    A test evaluation trains nothing; a tenth of a trial is set aside for it.
    """
    seconds = seconds_per_trial * (n_runs + 0.1 * n_evaluations)
    share = settings.gpus_per_trial if settings.device == "cuda" else 1.0
    return Spent(device_seconds=seconds * share, wall_seconds=seconds / max(1, min(n_slots, n_runs + n_evaluations)))


def window(n_completed: int) -> int:
    """Completed trials over which the front's growth is looked at."""
    return max(FLAT_TRIALS, ceil(FLAT_SHARE * n_completed))


def flat(trials: Sequence[TrialResult], settings: SweepSettings, reference: Sequence[float] | None) -> Ended | None:
    """Whether the last completed trials added less than FLAT_GROWTH to the front's hypervolume.

    A sweep without a front is not flat, it is empty.

    Args:
        trials: in the order in which they count; a 4-bit one counts once its similarity is known.
    """
    if not settings.stop_when_flat or reference is None:
        return None
    settled = [t for t in trials if is_candidate(t) and (t.config.precision == "16bit" or t.similarity)]
    n_last = window(len(settled))
    if len(settled) <= n_last:
        return None
    now = volume_of(counted(settled, settings), settings, reference)
    before = volume_of(counted(settled[:-n_last], settings), settings, reference)
    if now - before >= FLAT_GROWTH * now:  # also where both are 0
        return None
    share = 100 * max(0.0, now - before) / now
    text = f"the front's hypervolume grew by {share:.2g} % over the last {n_last} completed trials (stop_when_flat)"
    return Ended(why="flat", text=text)
