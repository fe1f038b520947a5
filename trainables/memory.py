"""Measured peak memory of a piece of work, on a GPU from the allocator, on a CPU from live storages."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Memory at its highest, in MiB.

    Attributes:
        allocated_mib: bytes in live tensors.
        reserved_mib: bytes held from the device by the allocator; the same as allocated on a CPU.
    """

    allocated_mib: float
    reserved_mib: float


class LiveStorages(TorchDispatchMode):
    """Count the bytes of every storage that an operation reads or writes, while it lives.

    `peak_bytes` is the largest sum seen. A storage that existed before counts from its first use,
    so run the work once inside before `reset_peak` to have resident weights in the sum.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bytes: dict[int, int] = {}
        self._refs: dict[int, weakref.ref] = {}
        self.live_bytes = 0
        self.peak_bytes = 0

    def reset_peak(self) -> None:
        self.peak_bytes = self.live_bytes

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._see((args, kwargs))
        result = func(*args, **(kwargs or {}))
        self._see(result)
        return result

    def _see(self, values: Any) -> None:
        for value in tree_iter(values):
            if isinstance(value, torch.Tensor) and value.device.type == "cpu":
                self._add(value.untyped_storage())

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._bytes:
            self._resize(key, storage.nbytes())
            return
        self._bytes[key] = 0
        self._refs[key] = weakref.ref(storage, lambda _, key=key: self._drop(key))
        self._resize(key, storage.nbytes())

    def _resize(self, key: int, n_bytes: int) -> None:
        self.live_bytes += n_bytes - self._bytes[key]
        self._bytes[key] = n_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _drop(self, key: int) -> None:
        self.live_bytes -= self._bytes.pop(key)
        del self._refs[key]


def peak_of(work: Callable[[], object], device: str) -> Peak:
    """Peak memory while `work` runs twice, everything it needs being resident already.

    Args:
        work: one training step after the first, so that optimizer state exists.
        device: "cuda" or "cpu".
    """
    if device == "cpu":
        with LiveStorages() as storages:
            work()
            storages.reset_peak()
            work()
        peak = storages.peak_bytes / MIB
        return Peak(allocated_mib=peak, reserved_mib=peak)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    work()
    torch.cuda.synchronize()
    return Peak(
        allocated_mib=torch.cuda.max_memory_allocated() / MIB,
        reserved_mib=torch.cuda.max_memory_reserved() / MIB,
    )
