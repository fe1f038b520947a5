"""Peak memory of a config on a base that is only named: from shapes alone, before anything is fetched or measured."""

from typing import Literal

from trainables.cost.gpus import LARGE_WORKSPACES_MIB, Gpu
from trainables.cost.predicted_memory import predicted_peak_mib
from trainables.models.families import shape_named
from trainables.values.config import ComputeDtype, TrialConfig


def named_peak_mib(
    base_model: str,
    device: str,
    compute_dtype: ComputeDtype | Literal["auto"],
    config: TrialConfig,
    gpu: Gpu | None = None,
) -> float | None:
    """Predicted peak on a GPU, one like an H100 if none is named.

    None on a CPU, and where the base's shape is not known here.
    """
    shape = shape_named(base_model)
    if shape is None or device == "cpu":
        return None
    if compute_dtype == "auto":
        compute_dtype = gpu.dtype if gpu else "bfloat16"
    workspaces = gpu.workspaces_mib if gpu else LARGE_WORKSPACES_MIB
    return predicted_peak_mib(shape, config, compute_dtype, workspaces_mib=workspaces)
