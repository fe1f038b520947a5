"""The machine: its GPUs, the arithmetic that they have in hardware, installed versions.

PyTorch is imported where a GPU is asked: the command line asks for GPUs and versions without it.
"""

import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from trainables.values.config import ComputeDtype

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "ray", "optuna")


def _cuda() -> ModuleType:
    """`torch.cuda`, which takes a second to import."""
    import torch

    return torch.cuda


def count_gpus() -> int:
    """CUDA devices this process may use; imports PyTorch only where a driver is present."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    driver = shutil.which("nvidia-smi") or any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()
    if hidden or not driver:
        return 0
    return _cuda().device_count()


def native_dtype(device: str) -> ComputeDtype:
    """The protocol's compute dtype on `device` ("cuda" or "cpu").

    bfloat16 where the GPU has it (asked without emulation), float16 on a GPU without it, float32 on
    every CPU: so the demo's keys and figures are those of any other CPU.
    """
    if device == "cpu":
        return "float32"
    return "bfloat16" if _cuda().is_bf16_supported(including_emulation=False) else "float16"


def free_memory_mib(device: str) -> float | None:
    """MiB of a GPU that this process can still allocate; None for a CPU."""
    if device == "cpu":
        return None
    return _cuda().mem_get_info()[0] / 2**20


def is_lost(device: str) -> bool:
    """Whether this process can no longer use its device.

    Some CUDA errors stay until the process ends (CUDA Runtime API, cudaErrorIllegalAddress, cudaErrorAssert and
    others); running out of memory does not.
    """
    if device == "cpu":
        return False
    try:
        _cuda().synchronize()
    except RuntimeError:
        return True
    return False


def device_name(device: str) -> str:
    """Name of the hardware, e.g. "NVIDIA H200" or "CPU x86_64"."""
    if device == "cpu":
        return f"CPU {platform.machine()}"
    return _cuda().get_device_name()


def device_id(device: str) -> str:
    """A name for this device that no other device of the machine has, the same in every process."""
    if device == "cpu":
        return "cpu"
    return str(_cuda().get_device_properties(0).uuid)


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Installed versions of Python and of packages, "absent" for one that is missing; imports none of them."""
    installed = {"python": platform.python_version()}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "absent"
    return installed


def own_peak_mib() -> int:
    """The most resident memory that this process ever had, pages of mapped weight files among it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2**20) if sys.platform == "darwin" else round(peak / 1024)  # bytes there, KiB on Linux


def environment(device: str) -> dict[str, str]:
    """Device and package versions, as recorded with each trial."""
    return {"device": device_name(device), **versions()}
