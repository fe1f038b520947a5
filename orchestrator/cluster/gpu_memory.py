"""Memory in use on this machine's GPUs, by whatever program: asked of the driver, so that no GPU is opened for it."""

import os
from dataclasses import dataclass
from importlib import import_module
from typing import Any

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """One GPU at one moment."""

    index: int
    used_bytes: int
    total_bytes: int

    def __str__(self) -> str:
        return f"GPU {self.index}: {self.used_bytes / GIB:.1f} of {self.total_bytes / GIB:.1f} GiB in use"


def gpu_memory(nvml: Any = None) -> tuple[GpuMemory, ...]:
    """Of the GPUs that CUDA_VISIBLE_DEVICES leaves; empty where there is no GPU or no NVIDIA driver.

    Args:
        nvml: NVIDIA's management library; default: pynvml.
    """
    nvml = nvml or import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        found = []
        for index in range(nvml.nvmlDeviceGetCount()):
            if _is_visible(index):
                memory = nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(index))
                found.append(GpuMemory(index=index, used_bytes=memory.used, total_bytes=memory.total))
        return tuple(found)
    except nvml.NVMLError:
        return ()
    finally:
        nvml.nvmlShutdown()


def _is_visible(index: int) -> bool:
    """GPUs named by an id of another form are not told apart: all are shown then."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return True
    names = [name.strip() for name in named.split(",") if name.strip()]
    if not all(name.lstrip("-").isdecimal() for name in names):
        return True
    return str(index) in names


def text_of(found: tuple[GpuMemory, ...]) -> str:
    """In one line; empty for none.

    >>> text_of((GpuMemory(index=0, used_bytes=3 * 2**29, total_bytes=80 * 2**30),))
    'GPU 0: 1.5 of 80.0 GiB in use'
    """
    return ", ".join(map(str, found))
