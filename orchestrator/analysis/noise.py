"""How far equal runs of one sweep lie apart, by objective: differences within that decide nothing. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, fsum, log, sqrt
from operator import attrgetter
from typing import Any

from orchestrator.analysis.sufficient_rank import t_quantile
from orchestrator.objectives import OBJECTIVES
from trainables.values.config import TrialConfig
from trainables.values.results import TrialResult

REPEATS = "time_repeats"
"""Fact: times of cost keys that were measured more than once, here or in earlier sweeps on the same kind of device and
under the same versions; each {cost_key, device, and the timed objectives by name}."""
MIN_REPEATS = 3
"""Measurements of one cost key from which its spread of time is known."""

BUT_SEED = attrgetter(*(name for name in TrialConfig.__dataclass_fields__ if name != "seed"))
"""All that decides a config's outcome but chance."""

Repeats = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What equal runs differ by in one objective.

    Attributes:
        sd: standard deviation between equal runs, in the objective's unit; of a time that of its natural logarithm.
            0 of what is the same for equal runs; None where it is not known yet, which counts as 0.
        n_degrees: degrees of freedom behind it.
    """

    objective: str
    sd: float | None = 0.0
    n_degrees: int = 0

    @property
    def is_relative(self) -> bool:
        """Whether differences are of logarithms."""
        return OBJECTIVES[self.objective].is_timed

    @property
    def margin(self) -> float:
        """How far two equal runs lie apart, 90 % of them, on the scale of `sd`: within it values are not told apart."""
        return sqrt(2) * self.one_run

    @property
    def one_run(self) -> float:
        """How far 90 % of equal runs lie on either side of their mean, on the scale of `sd`; 0 where that is not known.

        By Student's t, as `sd` is estimated.
        """
        return t_quantile(self.n_degrees, 0.95) * self.sd if self.sd and self.n_degrees else 0.0

    @property
    def text(self) -> str:
        """The margin in words.

        >>> Noise(objective="eval_loss_nats", sd=0.0044, n_degrees=4).text
        'loss (nats) 0.0133 (4 degrees of freedom)'
        >>> Noise(objective="seconds_per_step", sd=None).text
        'ms/step not known yet, counted as 0'
        """
        heading = OBJECTIVES[self.objective].heading
        if self.sd is None:
            return f"{heading} not known yet, counted as 0"
        if not self.n_degrees:
            return f"{heading} 0"
        margin = f"{100 * (exp(self.margin) - 1):.2g} %" if self.is_relative else self.shown(self.margin)
        return f"{heading} {margin} ({self.degrees})"

    @property
    def degrees(self) -> str:
        """The degrees of freedom in words."""
        return f"{self.n_degrees} degree{'' if self.n_degrees == 1 else 's'} of freedom"

    def shown(self, difference: float) -> str:
        """A difference in the unit of the objective's heading."""
        return OBJECTIVES[self.objective].shown(difference)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        scale = "log" if self.is_relative else "linear"
        figures = {"standard_deviation": self.sd, "degrees_of_freedom": self.n_degrees, "margin": self.margin}
        return {"objective": self.objective, "scale": scale, **figures}


def noise_of(
    trials: Sequence[TrialResult], objectives: Iterable[str], repeats: Repeats = (), device: str | None = None
) -> tuple[Noise, ...]:
    """The noise of each objective.

    Of what a rung measures, from completed trials that differ in nothing but the seed; of a time, on the logarithmic
    scale, from cost keys that were measured more than once. Peak memory is the same for equal runs, and no spread is
    known of a similarity: both 0.

    Args:
        repeats: see REPEATS.
        device: the kind of device whose times count; None takes each kind within itself, and all together.
    """
    found = []
    for name in objectives:
        objective = OBJECTIVES[name]
        if objective.is_timed:
            found.append(_of_time(name, trials, repeats, device))
        elif objective.source == "rung":
            found.append(_of_seeds(name, trials))
        else:
            found.append(Noise(objective=name))
    return tuple(found)


def margins(noise: Iterable[Noise]) -> list[float]:
    """Of each objective, in order."""
    return [one.margin for one in noise]


def _of_seeds(objective: str, trials: Iterable[TrialResult]) -> Noise:
    groups: dict[Any, list[float]] = {}
    for trial in trials:
        if trial.state == "completed" and trial.history:
            value = getattr(trial.history[-1], objective)
            groups.setdefault(BUT_SEED(trial.config), []).append(value)
    sd, n_degrees = pooled(groups.values())
    return Noise(objective=objective, sd=sd, n_degrees=n_degrees)


def _of_time(objective: str, trials: Iterable[TrialResult], repeats: Repeats, device: str | None) -> Noise:
    """Equal values are one measurement that several trials share."""
    groups: dict[tuple[str, str], set[float]] = {}
    for trial in trials:
        if trial.cost:
            of = (trial.config.cost_key, trial.cost.device)
            groups.setdefault(of, set()).add(getattr(trial.cost, objective))
    for repeat in repeats:
        groups.setdefault((repeat["cost_key"], repeat["device"]), set()).add(repeat[objective])
    logs = [list(map(log, sorted(found))) for (_, of), found in groups.items() if device in (None, of)]
    if max(map(len, logs), default=0) < MIN_REPEATS:
        return Noise(objective=objective, sd=None)
    sd, n_degrees = pooled(logs)
    return Noise(objective=objective, sd=sd, n_degrees=n_degrees)


def pooled(groups: Iterable[Sequence[float]]) -> tuple[float | None, int]:
    """Standard deviation within groups of equal runs, and its degrees of freedom: sqrt(sum of squares / degrees).

    >>> pooled([[1.0, 3.0], [5.0, 5.0]])
    (1.0, 2)
    >>> pooled([[1.0], [2.0]])
    (None, 0)
    """
    squares, n_degrees = 0.0, 0
    for values in groups:
        if len(values) < 2:
            continue
        middle = fsum(values) / len(values)
        squares += fsum((value - middle) ** 2 for value in values)
        n_degrees += len(values) - 1
    return (sqrt(squares / n_degrees) if n_degrees else None), n_degrees
