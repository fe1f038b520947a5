"""GPUs by name: their memory, what CUDA's libraries take of it, and their published speeds."""

from dataclasses import dataclass

from trainables.values.config import ComputeDtype
from trainables.values.errors import ConfigError, did_you_mean

SMALL_WORKSPACES_MIB, LARGE_WORKSPACES_MIB = 16.25, 65.0
"""Workspaces that cuBLAS keeps from the first matrix product on, one for the forward and one for the backward thread:
8.1 MiB each, from compute capability 9 on 32 MiB each (PyTorch's CUDA notes, CUBLAS_WORKSPACE_CONFIG), and a little."""
NEWER_MIB = LARGE_WORKSPACES_MIB - SMALL_WORKSPACES_MIB
"""What a step needs more from compute capability 9 on."""
CONTEXT_MIB = 600.0
"""What a process takes on a device beside PyTorch's tensors: the CUDA context and its kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU.

    Attributes:
        memory_gib: as the driver reports it in all, which is less than what the name says.
        capability: CUDA's, e.g. 8.6; 0 where it is not known.
        tflops: of dense 16-bit matrix products summed in float32, as NVIDIA publishes it; 0 where it is not known.
        gb_per_s: of its memory, 10^9 bytes read or written a second, likewise.
    """

    name: str
    memory_gib: float
    capability: float = 0.0
    tflops: float = 0.0
    gb_per_s: float = 0.0

    @property
    def usable_mib(self) -> float:
        """That tensors can take."""
        return self.memory_gib * 1024 - CONTEXT_MIB

    @property
    def dtype(self) -> ComputeDtype:
        """The protocol's arithmetic on it."""
        return "bfloat16" if self.capability >= 8 else "float16"

    @property
    def workspaces_mib(self) -> float:
        """See SMALL_WORKSPACES_MIB."""
        return LARGE_WORKSPACES_MIB if self.capability >= 9 else SMALL_WORKSPACES_MIB


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="T4", memory_gib=14.6, capability=7.5, tflops=65, gb_per_s=320),
        Gpu(name="V100-16GB", memory_gib=15.8, capability=7.0, tflops=125, gb_per_s=900),
        Gpu(name="V100-32GB", memory_gib=31.7, capability=7.0, tflops=125, gb_per_s=900),
        Gpu(name="RTX2080Ti", memory_gib=10.8, capability=7.5, tflops=53.8, gb_per_s=616),
        Gpu(name="RTX3060", memory_gib=11.8, capability=8.6, tflops=25.5, gb_per_s=360),
        Gpu(name="RTX3090", memory_gib=23.7, capability=8.6, tflops=71, gb_per_s=936),
        Gpu(name="RTX4060Ti-16GB", memory_gib=15.7, capability=8.9, tflops=44.1, gb_per_s=288),
        Gpu(name="RTX4080", memory_gib=15.7, capability=8.9, tflops=97.5, gb_per_s=717),
        Gpu(name="RTX4090", memory_gib=23.6, capability=8.9, tflops=165.2, gb_per_s=1008),
        Gpu(name="RTX5090", memory_gib=31.4, capability=12.0, tflops=209.5, gb_per_s=1792),
        Gpu(name="A10", memory_gib=22.1, capability=8.6, tflops=125, gb_per_s=600),
        Gpu(name="A10G", memory_gib=22.1, capability=8.6, tflops=70, gb_per_s=600),
        Gpu(name="A40", memory_gib=44.4, capability=8.6, tflops=149.7, gb_per_s=696),
        Gpu(name="A6000", memory_gib=47.4, capability=8.6, tflops=154.8, gb_per_s=768),
        Gpu(name="A100-40GB", memory_gib=39.4, capability=8.0, tflops=312, gb_per_s=1555),
        Gpu(name="A100-80GB", memory_gib=79.2, capability=8.0, tflops=312, gb_per_s=2039),
        Gpu(name="L4", memory_gib=22.0, capability=8.9, tflops=121, gb_per_s=300),
        Gpu(name="L40S", memory_gib=44.4, capability=8.9, tflops=362, gb_per_s=864),
        Gpu(name="H100", memory_gib=79.2, capability=9.0, tflops=989, gb_per_s=3350),
        Gpu(name="H200", memory_gib=139.8, capability=9.0, tflops=989, gb_per_s=4800),
        Gpu(name="B200", memory_gib=178.4, capability=10.0, tflops=2250, gb_per_s=8000),
    )
}
"""By the name that people use, in the fastest of several forms; memory is what torch.cuda.mem_get_info reports in all,
or within 1 % of it."""


def gpu_named(name: str) -> Gpu:
    """The GPU of a name, whatever its case; spaces and "NVIDIA" are nothing.

    Raises:
        ConfigError: none has it; the nearest is offered.
    """
    wanted = _plain(name)
    for gpu in GPUS.values():
        if _plain(gpu.name) == wanted:
            return gpu
    raise ConfigError(f"gpu: no GPU {name!r}{did_you_mean(name, GPUS)}")


def _plain(name: str) -> str:
    plain = name.lower()
    for nothing in ("nvidia", "tesla", "geforce", " ", "-", "_"):
        plain = plain.replace(nothing, "")
    return plain
