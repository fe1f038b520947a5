"""GPUs by name: their memory, and what CUDA's libraries take of it."""

from dataclasses import dataclass

from trainables.values.errors import ConfigError, did_you_mean

SMALL_WORKSPACES_MIB, LARGE_WORKSPACES_MIB = 16.25, 65.0
"""Workspaces that cuBLAS keeps from the first matrix product on, one for the forward and one for the backward thread:
8.1 MiB each, from compute capability 9 on 32 MiB each (PyTorch's CUDA notes, CUBLAS_WORKSPACE_CONFIG), and a little."""
CONTEXT_MIB = 600.0
"""What a process takes on a device beside PyTorch's tensors: the CUDA context and its kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU.

    Attributes:
        memory_gib: as the driver reports it in all, which is less than what the name says.
        capability: CUDA's, e.g. 8.6; 0 where it is not known.
    """

    name: str
    memory_gib: float
    capability: float = 0.0

    @property
    def usable_mib(self) -> float:
        """That tensors can take."""
        return self.memory_gib * 1024 - CONTEXT_MIB

    @property
    def workspaces_mib(self) -> float:
        """See SMALL_WORKSPACES_MIB."""
        return LARGE_WORKSPACES_MIB if self.capability >= 9 else SMALL_WORKSPACES_MIB


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="T4", memory_gib=14.6, capability=7.5),
        Gpu(name="V100-16GB", memory_gib=15.8, capability=7.0),
        Gpu(name="V100-32GB", memory_gib=31.7, capability=7.0),
        Gpu(name="RTX2080Ti", memory_gib=10.8, capability=7.5),
        Gpu(name="RTX3060", memory_gib=11.8, capability=8.6),
        Gpu(name="RTX3090", memory_gib=23.7, capability=8.6),
        Gpu(name="RTX4060Ti-16GB", memory_gib=15.7, capability=8.9),
        Gpu(name="RTX4080", memory_gib=15.7, capability=8.9),
        Gpu(name="RTX4090", memory_gib=23.6, capability=8.9),
        Gpu(name="RTX5090", memory_gib=31.4, capability=12.0),
        Gpu(name="A10", memory_gib=22.1, capability=8.6),
        Gpu(name="A10G", memory_gib=22.1, capability=8.6),
        Gpu(name="A40", memory_gib=44.4, capability=8.6),
        Gpu(name="A6000", memory_gib=47.4, capability=8.6),
        Gpu(name="A100-40GB", memory_gib=39.4, capability=8.0),
        Gpu(name="A100-80GB", memory_gib=79.2, capability=8.0),
        Gpu(name="L4", memory_gib=22.0, capability=8.9),
        Gpu(name="L40S", memory_gib=44.4, capability=8.9),
        Gpu(name="H100", memory_gib=79.2, capability=9.0),
        Gpu(name="H200", memory_gib=139.8, capability=9.0),
        Gpu(name="B200", memory_gib=178.4, capability=10.0),
    )
}
"""By the name that people use; memory is what torch.cuda.mem_get_info reports in all, or within 1 % of it."""


def gpu_named(name: str) -> Gpu:
    """The GPU of a name, whatever its case; spaces and "NVIDIA" are nothing.

    Raises:
        ConfigError: none has it; the nearest is offered.
    """
    wanted = _plain(name)
    for gpu in GPUS.values():
        if _plain(gpu.name) == wanted:
            return gpu
    raise ConfigError(f"gpu: no GPU {name!r}{did_you_mean(name, GPUS)}; or give its memory, --memory 16GiB")


def _plain(name: str) -> str:
    plain = name.lower()
    for nothing in ("nvidia", "tesla", "geforce", " ", "-", "_"):
        plain = plain.replace(nothing, "")
    return plain
