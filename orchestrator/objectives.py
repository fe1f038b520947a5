"""What a front can be over: one frozen value an objective.

To add one: an entry in OBJECTIVES, and the place that measures it (a field of Cost, Measurement or Similarity of the
same name). Search, pruning, front, figures and report read all else from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from trainables.values.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One objective.

    Attributes:
        name: in settings, ledger and files; ends in the unit that its values are kept in.
        source: "cost" of a cost key, measured once on a device and shared; "rung", measured at each rung of a trial;
            or "similarity" of a 4-bit trial to its 16-bit baseline, known after both ended.
        direction: which values are better.
        label: in a sentence.
        axis: title of an axis, with the unit in brackets.
        heading: of a column in a table, with the unit.
        short: in a file's name.
        format: of a value in the unit that is shown.
        factor: from the unit that is kept to the unit that is shown.
        colour: of its bars, from Okabe and Ito's palette.
        is_timed: a clock gave it. Then it has noise, the spread over steps (p10 to p90, fields of Cost), and values
            of different kinds of device are not compared.
    """

    name: str
    source: Literal["cost", "rung", "similarity"]
    direction: Literal["minimize", "maximize"] = "minimize"
    label: str
    axis: str
    heading: str
    short: str
    format: str
    factor: float = 1.0
    colour: str
    is_timed: bool = False

    @property
    def sign(self) -> float:
        """A value times its sign is a loss, and a loss times it a value."""
        return -1.0 if self.direction == "maximize" else 1.0

    def shown(self, value: float | None) -> str:
        """A value in the unit of the heading.

        >>> OBJECTIVES["seconds_per_step"].shown(0.0104)
        '10.4'
        """
        return "-" if value is None else format(value * self.factor, self.format)


_ALL = (
    Objective(
        name="peak_memory_mib",
        source="cost",
        label="peak memory",
        axis="peak memory (MiB)",
        heading="peak MiB",
        short="memory",
        format=".1f",
        colour="#009e73",
    ),
    Objective(
        name="seconds_per_step",
        source="cost",
        label="step time",
        axis="time of a training step (ms)",
        heading="ms/step",
        short="time",
        format=".1f",
        factor=1e3,
        colour="#e69f00",
        is_timed=True,
    ),
    Objective(
        name="eval_loss_nats",
        source="rung",
        label="validation loss",
        axis="validation loss (nats per token)",
        heading="loss (nats)",
        short="loss",
        format=".4f",
        colour="#cc79a7",
    ),
    Objective(
        name="embedding_cosine",
        source="similarity",
        direction="maximize",
        label="embedding cosine",
        axis="embedding cosine to the 16-bit baseline (1: equal)",
        heading="cosine",
        short="cosine",
        format=".4f",
        colour="#56b4e9",
    ),
    Objective(
        name="token_match_rate",
        source="similarity",
        direction="maximize",
        label="token match",
        axis="tokens equal to the 16-bit baseline's (share)",
        heading="match",
        short="match",
        format=".3f",
        colour="#999999",
    ),
)
OBJECTIVES: Mapping[str, Objective] = {objective.name: objective for objective in _ALL}
"""By name, in the order in which figures pair them."""
DEFAULT = ("peak_memory_mib", "seconds_per_step", "eval_loss_nats")


def named(name: str) -> Objective:
    """The objective of a name.

    Raises:
        ConfigError: there is none; the nearest is named.
    """
    if name not in OBJECTIVES:
        raise ConfigError(f"no objective {name!r}{did_you_mean(name, OBJECTIVES)}")
    return OBJECTIVES[name]
