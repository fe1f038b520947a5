"""The machine: its GPUs, the arithmetic that they have in hardware, installed versions.

PyTorch is imported where a GPU is asked: the command line asks for GPUs and versions without it.
"""

import os
import platform
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

from trainables.values.config import ComputeDtype

SPARE_CORES = 8
"""On fewer each is at work while a sweep starts."""
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "ray", "optuna")


def _cuda() -> ModuleType:
    """`torch.cuda`, which takes a second to import."""
    import torch

    return torch.cuda


def count_gpus() -> int:
    """CUDA devices this process may use; PyTorch, which takes seconds to import, is asked only where it must be."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    driver = shutil.which("nvidia-smi") or any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()
    if hidden or not driver:
        return 0
    torch = find_spec("torch")
    built = Path(torch.origin).with_name("version.py").read_text() if torch and torch.origin else ""
    counted = count_by_driver() if is_for_cuda(built) else None
    return _cuda().device_count() if counted is None else counted


def count_by_driver(nvml: Any = None) -> int | None:
    """CUDA devices as NVIDIA's driver and CUDA_VISIBLE_DEVICES have them; None where PyTorch must be asked.

    That is so where devices are named by ids of another form, or the driver says nothing.

    Args:
        nvml: NVIDIA's management library; default: pynvml.
    """
    named = _named_devices()
    if named is None:
        return None
    n_there = _asked_of(nvml or import_module("pynvml"), lambda nvml: nvml.nvmlDeviceGetCount())
    if n_there is None or not named:
        return n_there
    return len(list(takewhile(n_there.__gt__, named))) if len(set(named)) == len(named) else None


def compute_capability(nvml: Any = None) -> int | None:
    """Of the first device that this process may use, 90 for 9.0, by NVIDIA's driver alone; None where that is silent.

    Args:
        nvml: as of `count_by_driver`.
    """

    def ask(nvml: Any) -> int:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(nvml.nvmlDeviceGetHandleByIndex(first))
        return 10 * major + minor

    named = _named_devices()
    if named is None:
        return None
    first = named[0] if named else 0
    return _asked_of(nvml or import_module("pynvml"), ask)


def _named_devices() -> list[int] | None:
    """Numbers in CUDA_VISIBLE_DEVICES, empty where it is not set; None where it has none or ids of another form."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return []
    return list(map(int, visible.split(","))) if re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", visible) else None


def _asked_of(nvml: Any, ask: Callable[[Any], int]) -> int | None:
    """What the driver answers, None if nothing."""
    try:
        nvml.nvmlInit()
        answer = ask(nvml)
        nvml.nvmlShutdown()
    except nvml.NVMLError:
        return None
    return answer


def is_for_cuda(built: str) -> bool:
    """Whether a PyTorch was built for CUDA, by the content of its version.py, which is read without the rest.

    >>> is_for_cuda("cuda: Optional[str] = '13.0'"), is_for_cuda("cuda: Optional[str] = None")
    (True, False)
    """
    return re.search(r"^cuda\b[^=]*= *['\"]\d", built, re.MULTILINE) is not None


def has_spare_cores(quota: Path = CPU_QUOTA) -> bool:
    """Whether something may be done ahead on this machine without taking a core from what is waited for.

    Args:
        quota: of a container: how many microseconds of processor time it has in how many ("200000 100000", "max
            100000"), as Linux's control groups v2 write it; without the file there is none.
    """
    n_cores = float(len(os.sched_getaffinity(0)))
    with suppress(OSError, ValueError, ZeroDivisionError):  # "max" is no number
        used, period = map(int, quota.read_text().split())
        n_cores = min(n_cores, used / period)
    return n_cores >= SPARE_CORES


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
