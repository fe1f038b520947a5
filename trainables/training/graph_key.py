"""What captured steps are made for: which trials can share them, and which kernels they are made of."""

from collections.abc import Hashable
from dataclasses import dataclass

from trainables.capture.capture import padded_rank
from trainables.values.config import BaseForm, TrialConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphKey:
    """What StepGraphs are captured for; everything else that a trial chooses may change between replays.

    Attributes:
        rank: padded, see trainables.capture.capture.padded_rank.
    """

    base_form: BaseForm
    targets: tuple[str, ...]
    dropout: float
    loop: str
    rank: int
    gradient_checkpointing: bool

    @property
    def kernels(self) -> Hashable:
        """Steps of equal `kernels` are made of the same, but for those that a library picks by the sizes of a product:
        over a base of several blocks whose modules' inputs are all multiples of Triton's 16 wide.

        Which modules have an adapter, and with which dropout if any, decides none there.
        """
        return self.base_form, self.loop, self.rank, self.gradient_checkpointing, self.dropout > 0


def graph_key(config: TrialConfig) -> GraphKey:
    """Of the StepGraphs that can train a config."""
    return GraphKey(
        base_form=config.base_form,
        targets=config.targets,
        dropout=config.dropout,
        loop=config.loop,
        rank=padded_rank(config.rank),
        gradient_checkpointing=config.gradient_checkpointing,
    )
