"""What a device's memory allows, by prediction: before anything runs. Pure."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainables.cost.predicted_memory import MAX_ERROR_MIB, MAX_ERROR_SHARE, predicted_peak_mib

if TYPE_CHECKING:
    from trainables.cost.shape import Shape
    from trainables.values.config import ComputeDtype, TrialConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLimit:
    """The device of a sweep and the shape of its base; either may not be known.

    Attributes:
        memory_mib: that a trial may allocate.
    """

    shape: "Shape | None"
    memory_mib: float | None
    compute_dtype: "ComputeDtype"

    def excess(self, config: "TrialConfig") -> float | None:
        """Predicted peak beyond the device's memory, as a share of it; at most 0 fits, None where not known."""
        if self.memory_mib is None or self.shape is None:
            return None
        return predicted_peak_mib(self.shape, config, self.compute_dtype) / self.memory_mib - 1

    def refusal(self, config: "TrialConfig") -> str | None:
        """Why a config cannot run, allowing for what the prediction may be off; None where it might."""
        excess = self.excess(config)
        if excess is None or self.memory_mib is None:
            return None
        if excess * self.memory_mib <= max(MAX_ERROR_SHARE * self.memory_mib, MAX_ERROR_MIB):
            return None
        needs = (1 + excess) * self.memory_mib
        return f"needs about {needs:.0f} MiB (predicted), the device has {self.memory_mib:.0f} MiB"
