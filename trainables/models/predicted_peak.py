"""Peak memory of a config on a base that is only named: from shapes alone, before anything is fetched or measured."""

from typing import Literal

from trainables.cost.predicted_memory import predicted_peak_mib
from trainables.models.families import shape_named
from trainables.values.config import ComputeDtype, TrialConfig


def named_peak_mib(
    base_model: str, device: str, compute_dtype: ComputeDtype | Literal["auto"], config: TrialConfig
) -> float | None:
    """Predicted peak on a GPU; None on a CPU, and where the base's shape is not known here."""
    shape = shape_named(base_model)
    if shape is None or device == "cpu":
        return None
    return predicted_peak_mib(shape, config, "bfloat16" if compute_dtype == "auto" else compute_dtype)
