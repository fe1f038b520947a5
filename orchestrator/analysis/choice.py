"""The one trial of a sweep that `best`, `export` and the report name: the best, or the front's knee. Pure."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator import objectives
from orchestrator.analysis.describe import describe, every_setting, ranks
from orchestrator.analysis.front import Front, counted, device_of, front_of, losses_of, objective_value
from orchestrator.analysis.noise import Noise, noise_of
from orchestrator.settings import SweepSettings
from orchestrator.settings.command import command
from orchestrator.settings.stored import is_recorded
from trainables.values.errors import ConfigError
from trainables.values.results import TrialResult

if TYPE_CHECKING:
    from orchestrator.analysis.snapshot import SweepSnapshot

BEST = "the cheapest with the lowest validation loss, within noise, of the trials that count"
LOWEST = "the lowest validation loss of the trials that count"
"""Of a sweep whose noise is not known."""
KNEE = "the knee of the front, nearest to the best of every objective at once"
MIB = {"b": 2.0**-20, "kib": 2.0**-10, "mib": 1.0, "gib": 2.0**10, "tib": 2.0**20}
MIB |= {"kb": 1e3 / 2**20, "mb": 1e6 / 2**20, "gb": 1e9 / 2**20, "tb": 1e12 / 2**20}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One config, and in words why it is the one, which others are as good as far as can be told, and of a 4-bit trial
    what 4 bits cost, where that is known; of a recorded sweep, whose adapters are not kept, nothing is exported."""

    sweep: str
    trial: TrialResult
    values: Mapping[str, float | None]
    why: str
    sure: str
    verdict: str | None = None
    is_recorded: bool = False

    @property
    def text(self) -> str:
        config = every_setting(self.trial.config)
        values = ", ".join(f"{name} {value:.6g}" for name, value in self.values.items() if value is not None)
        export = [f"its adapter: {command()} export {self.sweep} DEST --trial {self.trial.number}"]
        verdict = [f"what 4 bits cost it: {self.verdict}"] if self.verdict else []
        answer = f"trial {self.trial.number}: {self.why}"
        return "\n".join([answer, self.sure, *verdict, config, values, *([] if self.is_recorded else export)])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        own = {"number": self.trial.number, "key": self.trial.key, "config": self.trial.config.to_dict()}
        said = {"why": self.why, "sure": self.sure, "verdict": self.verdict}
        return {"name": self.sweep, **own, "values": dict(self.values), **said}


def choose(sweep: "SweepSnapshot", *, max_memory_mib: float | None = None, at_knee: bool = False) -> Choice:
    """The best trial of a sweep, or its front's knee.

    Args:
        max_memory_mib: leaves out trials with a higher peak.
    Raises:
        ConfigError: no trial counts, or none fits; the message names the nearest.
    """
    trials, settings = sweep.trials, sweep.settings
    found = counting(trials, settings)
    if not found:
        name = settings.name
        raise ConfigError(f"NAME: no trial of sweep {name!r} counts for its front; see {command()} report {name}")
    limit, noise = math.inf if max_memory_mib is None else max_memory_mib, loss_noise(trials)
    within = [trial for trial in trials if trial.history and trial.cost.peak_memory_mib <= limit]
    fitting = counting(within, settings)
    chosen = knee(front_of(within, settings, sweep.reference, sweep.repeats)) if at_knee else best(fitting, noise)
    if chosen is None:
        least = min(found, key=lambda t: (t.cost.peak_memory_mib, t.number))
        raise ConfigError(
            f"--max-memory is {max_memory_mib:.1f} MiB; the least that a trial of {settings.name!r} needs is "
            f"{least.cost.peak_memory_mib:.1f} MiB (trial {least.number}, {describe(least.config)})"
        )
    why = KNEE if at_knee else LOWEST if noise.sd is None else BEST
    if max_memory_mib is not None:
        why += f", of those that need at most {max_memory_mib:.1f} MiB"
    names = dict.fromkeys((*objectives.DEFAULT, *settings.objectives, "embedding_cosine"))
    values = {name: objective_value(chosen, name) for name in names}
    sure = how_sure(chosen, fitting, noise, sweep.lost)
    verdict = sweep.verdicts.get(chosen.key)
    said = {"why": why, "sure": sure, "verdict": verdict.sentence if verdict else None}
    return Choice(sweep=settings.name, trial=chosen, values=values, is_recorded=is_recorded(sweep.folder), **said)


def counting(trials: Sequence[TrialResult], settings: SweepSettings) -> list[TrialResult]:
    """The trials that are chosen from: completed, of the search, measured, and as similar as was asked for."""
    return [trial for trial, _ in counted(trials, settings) if trial.history]


def best(found: Sequence[TrialResult], noise: Noise) -> TrialResult | None:
    """The cheapest of those whose validation loss is the lowest as far as can be told: the answer; None of none."""
    least = lowest(found)
    return alike(least, found, noise)[0] if least else None


def lowest(found: Sequence[TrialResult]) -> TrialResult | None:
    """The lowest validation loss, that on the validation rows, be it by chance; None of none.

    Equal losses: the smaller peak, then the shorter step, then the earlier trial.
    """
    return min(found, key=_order, default=None)


def _order(trial: TrialResult) -> tuple[float, float, float, int]:
    last = trial.history[-1]
    return last.eval_loss_nats, trial.cost.peak_memory_mib, trial.cost.seconds_per_step, trial.number


def knee(front: Front) -> TrialResult | None:
    """The member that gives up least: nearest to the ideal point; None without members.

    The ideal point has the best value of each objective (Zeleny 1973, compromise programming); distances are
    Euclidean, each objective over its range on the front, so that its unit does not matter. Of equal ones the first
    trial. Where members ran on several kinds of device, each is held against its own kind.
    """
    kinds: dict[str, list[TrialResult]] = {}
    for member in front.members:
        kinds.setdefault(device_of(member), []).append(member)
    given_up: list[tuple[float, int, TrialResult]] = []
    for members in kinds.values():
        given_up += zip(_distances(members, front), map(attrgetter("number"), members), members, strict=True)
    return min(given_up, key=itemgetter(0, 1))[2] if given_up else None


def _distances(members: Sequence[TrialResult], front: Front) -> list[float]:
    """Of members that may be compared, from the best of every objective among them."""
    losses = np.array([losses_of(member, front.objectives) for member in members], dtype=np.float64)
    best, worst = losses.min(axis=0), losses.max(axis=0)
    given_up = (losses - best) / np.where(worst > best, worst - best, 1.0)
    return np.sqrt((given_up**2).sum(axis=1)).tolist()


def mib_of(text: str) -> float:
    """MiB that a size stands for.

    >>> mib_of("2GiB"), mib_of("1536 MiB")
    (2048.0, 1536.0)

    Raises:
        ConfigError: no positive number with a unit.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = found[2].lower() if found else "?"
    if not found or unit not in MIB or not float(found[1]) > 0:
        raise ConfigError(f"{text!r} is no size: say it with its unit, as 2GiB or 1500MiB")
    return float(found[1]) * MIB[unit]


def loss_noise(trials: Sequence[TrialResult]) -> Noise:
    """What equal runs of a sweep differ by in validation loss."""
    return noise_of(trials, ("eval_loss_nats",))[0]


def how_sure(
    chosen: TrialResult, found: Sequence[TrialResult], noise: Noise, lost: Collection[str] = frozenset()
) -> str:
    """One sentence on which trials have a validation loss that cannot be told from that of the chosen one.

    Of one that cannot be told from the lowest itself, which cannot be told from that; of another, such as a knee, also
    by how much the lowest is lower.

    Args:
        found: those that it was chosen from.
        noise: of the loss; what is within its margin is not told apart.
        lost: keys of trials of which 4 bits lose more than the margin.
    """
    if noise.sd is None:
        return "how sure this is shows where a config has run under two seeds"
    least, beside = lowest(found), ""
    within_noise, only = alike(least, found, noise), "so low a"
    if chosen not in within_noise:
        lower = _loss(chosen) - _loss(least)
        within_noise = [t for t in alike(chosen, found, noise) if _loss(t) >= _loss(chosen) - noise.margin]
        only, beside = "about this", f"; the lowest, trial {least.number}'s, is {lower:.4f} nats lower"
    within = f"within {noise.margin:.4f} nats, as much as equal runs may differ by ({noise.degrees})"
    if len(within_noise) <= 1:
        return f"it is the only trial with {only} validation loss, {within}{beside}"
    cheapest = within_noise[0]
    mark = " lost," if cheapest.key in lost else ""
    named = f"trial {cheapest.number}, {describe(cheapest.config)},{mark}"
    return (
        f"{ranks(trial.config for trial in within_noise)} ({len(within_noise)} trials) cannot be told apart by "
        f"validation loss, {within}; "
        f"{'this' if cheapest == chosen else named} is the cheapest of them ({cheapest.cost.peak_memory_mib:.1f} MiB)"
        f"{beside}"
    )


def alike(chosen: TrialResult, found: Sequence[TrialResult], noise: Noise) -> list[TrialResult]:
    """Trials whose validation loss is that of the chosen one or lower, within the noise; the cheapest first."""
    limit = _loss(chosen) + noise.margin
    return sorted((trial for trial in found if _loss(trial) <= limit), key=_cost_order)


def _loss(trial: TrialResult) -> float:
    return trial.history[-1].eval_loss_nats


def _cost_order(trial: TrialResult) -> tuple[float, ...]:
    """The smallest peak first; of equal ones the best."""
    return trial.cost.peak_memory_mib, *_order(trial)


def stairs(found: Sequence[TrialResult], margin_nats: float = 0.0) -> list[list[TrialResult]]:
    """Of trials that count, the best within each budget of peak memory, from the smallest up.

    A step begins with a trial whose loss is lower than that of the step before by more than the margin. Trials that
    only lower it by less follow in the same step: for what they cost more, nothing is known to be gained. With no
    margin the best of all that fit a budget is the last of them that fits.
    """
    steps: list[list[TrialResult]] = []
    for trial in sorted(found, key=_cost_order):
        if not steps or _loss(trial) < _loss(steps[-1][0]) - margin_nats:
            steps.append([trial])
        elif _loss(trial) < _loss(steps[-1][-1]):
            steps[-1].append(trial)
    return steps
