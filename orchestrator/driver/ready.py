"""What a sweep has when its trials can begin: its inputs on this machine, what its devices are, its open ledger."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.ledger import Ledger
    from orchestrator.settings import SweepSettings
    from trainables.cost.predicted_time import Speed
    from trainables.values.config import ComputeDtype
    from trainables.values.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepDevice:
    """What a sweep's trials run on; of several kinds, what all of them can do.

    Attributes:
        names: of the kinds.
        compute_dtype: the sweep's arithmetic.
        memory_mib: that a trial may allocate on any of them; None on a CPU.
        speed: of the slowest; None on a CPU.
    """

    names: frozenset[str]
    compute_dtype: "ComputeDtype"
    memory_mib: float | None = None
    speed: "Speed | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Inputs and devices of a sweep whose Ray is connected.

    Attributes:
        counts: of rows read, dropped by reason, in each split, and too long for the space.
    """

    workload: "Workload"
    counts: Mapping[str, int]
    device: SweepDevice


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A sweep whose ledger is open and says what it is about: what a driver is made of.

    Attributes:
        known: of Driver: what other sweeps know.
    """

    settings: "SweepSettings"
    workload: "Workload"
    ledger: "Ledger"
    known: Mapping[str, Any]
