"""Memory of a training step: its measured peak, and its parts (weights, activations, ...) at the peak.

On a GPU the allocator gives the peak, on a CPU the sum of live storages. On both, live storages give the parts.
"""

import gc
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainables.values.errors import TrialFailed
from trainables.values.results import MIB, MemoryBreakdown


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Memory at its highest, in MiB.

    Attributes:
        allocated_mib: bytes in live tensors.
        reserved_mib: bytes held from the device by the allocator; the same as allocated on a CPU.
        seen_mib: bytes in the storages that PyTorch's operations showed; the same as allocated on a CPU,
            less on a GPU by what libraries allocate for themselves and by rounding.
        breakdown: of allocated_mib.
    """

    allocated_mib: float
    reserved_mib: float
    seen_mib: float
    breakdown: MemoryBreakdown


class LiveStorages(TorchDispatchMode):
    """Count the bytes of every storage on one device that an operation reads or writes, while it lives.

    A storage that existed before counts from its first use or `see`, so show it before `reset_peak` to have
    resident weights in the sum.

    Attributes:
        live_bytes: now.
        peak_bytes: the largest sum seen since `reset_peak`.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self._device = device
        self._bytes: dict[int, int] = {}  # by storage address, which is used again after it was freed
        self._refs: dict[int, weakref.ref] = {}
        self._numbers: dict[int, int] = {}  # address -> number, which is used once only
        self._n_numbers = 0
        self._log: list[tuple[int, int]] = []  # (number, change in bytes)
        self._at_backward: frozenset[int] | None = None
        self.live_bytes = 0
        self.peak_bytes = 0

    def reset_peak(self) -> None:
        """Start a new peak from the storages that are live now."""
        self.peak_bytes = self.live_bytes
        self._log = [(self._numbers[key], n_bytes) for key, n_bytes in self._bytes.items()]
        self._at_backward = None

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._at_backward is None and torch._C._current_graph_task_id() != -1:  # the backward pass begins
            self._at_backward = frozenset(self._numbers.values())
        self.see((args, kwargs))
        result = func(*args, **(kwargs or {}))
        self.see(result)
        return result

    def see(self, values: Any) -> None:
        """Count every tensor in nested lists, tuples and dictionaries."""
        if isinstance(values, torch.Tensor):
            if values.device.type == self._device:
                self._add(values.untyped_storage())
        elif isinstance(values, list | tuple):
            for value in values:
                self.see(value)
        elif isinstance(values, Mapping):
            self.see(list(values.values()))

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._bytes:
            self._n_numbers += 1
            self._numbers[key] = self._n_numbers
            self._bytes[key] = 0
            self._refs[key] = weakref.ref(storage, lambda _, key=key: self._drop(key))
        self._resize(key, storage.nbytes())

    def _resize(self, key: int, n_bytes: int) -> None:
        change = n_bytes - self._bytes[key]
        if not change:
            return
        self._log.append((self._numbers[key], change))
        self.live_bytes += change
        self._bytes[key] = n_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _drop(self, key: int) -> None:
        self._resize(key, 0)
        del self._bytes[key], self._refs[key], self._numbers[key]

    def number(self, tensor: torch.Tensor) -> int | None:
        """The number of a live tensor's storage; None if it was never seen."""
        return self._numbers.get(tensor.untyped_storage()._cdata)

    def at_peak(self) -> dict[int, int]:
        """Bytes of each storage that lived at the (first) peak since `reset_peak`, by number."""
        live: dict[int, int] = {}
        total = 0
        for number, change in self._log:
            total += change
            live[number] = live.get(number, 0) + change
            if total == self.peak_bytes:
                break
        assert total == self.peak_bytes, f"{len(self._log)} changes come to {total}, not {self.peak_bytes} bytes"
        return {number: n_bytes for number, n_bytes in live.items() if n_bytes}

    @property
    def kept_for_backward(self) -> frozenset[int]:
        """Numbers of the storages that lived when the last backward pass began."""
        return self._at_backward or frozenset()


Owners = Callable[[], Mapping[str, Iterable[torch.Tensor]]]
"""Gives the resident tensors by their part of MemoryBreakdown ("base_weights", "adapter", ...)."""
PARTS = ("base_weights", "quantization_constants", "adapter", "gradients", "optimizer", "activations")


def peak_of(work: Callable[[], object], device: str, owners: Owners = dict) -> Peak:
    """Peak memory while `work` runs, everything it needs being resident already.

    That its storages are counted meanwhile makes it no larger (tests/gpu/test_gpu_medium.py).

    Args:
        work: one training step; the optimizer's state exists. On a CPU it runs twice.
        device: "cuda" or "cpu".
        owners: called after the work has run; need not name gradients, which are those of "adapter".
    """
    allocated = reserved = None
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seen, parts = _seen_peak(work, device, owners)
    if device == "cuda":
        torch.cuda.synchronize()
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    allocated = seen if allocated is None else allocated
    reserved = allocated if reserved is None else reserved
    named = {f"{name}_mib": n_bytes / MIB for name, n_bytes in parts.items()}
    return Peak(
        allocated_mib=allocated / MIB,
        reserved_mib=reserved / MIB,
        seen_mib=seen / MIB,
        breakdown=MemoryBreakdown(**named, rest_mib=(allocated - sum(parts.values())) / MIB),
    )


def _seen_peak(work: Callable[[], object], device: str, owners: Owners) -> tuple[int, dict[str, int]]:
    """Bytes in live storages at the peak of one run of `work`, and of the named parts among them."""
    with LiveStorages(device) as storages:
        if device == "cpu":
            work()  # tensors that it reads and `owners` does not name are resident too
        storages.see(owners())
        storages.reset_peak()
        part_of: dict[int | None, str] = {}
        for part, tensors in owners().items():
            part_of |= {storages.number(tensor): part for tensor in tensors}

        def note_gradient(parameter: torch.Tensor) -> None:
            part_of[storages.number(parameter.grad)] = "gradients"

        hooks = [p.register_post_accumulate_grad_hook(note_gradient) for p in owners().get("adapter", ())]
        try:
            work()
        finally:
            for hook in hooks:
                hook.remove()
    sums = dict.fromkeys(PARTS, 0)
    for number, n_bytes in storages.at_peak().items():
        part = part_of.get(number, "activations" if number in storages.kept_for_backward else None)
        if part:
            sums[part] += n_bytes
    return storages.peak_bytes, sums


def allocated_mib(device: str) -> float:
    """MiB in live tensors on the device now; on a CPU, those that the garbage collector knows of."""
    if device == "cuda":
        return torch.cuda.memory_allocated() / MIB
    classes = _with_subclasses(torch.Tensor)  # a look-up each is faster than isinstance on every object
    sizes: dict[int, int] = {}
    for candidate in gc.get_objects():
        if type(candidate) in classes and candidate.device.type == "cpu":
            storage = candidate.untyped_storage()
            sizes[storage._cdata] = storage.nbytes()
    return sum(sizes.values()) / MIB


def _with_subclasses(base: type) -> set[type]:
    """A class and all that inherit from it."""
    return {base}.union(*map(_with_subclasses, base.__subclasses__()))


@contextmanager
def oom_as_failure() -> Iterator[None]:
    """Turn a CUDA out-of-memory error inside the block into TrialFailed("oom"), with the peak until then."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # they hold the tensors that filled the device
        peak = torch.cuda.max_memory_allocated() / MIB
        raise TrialFailed("oom", f"the GPU ran out of memory at {peak:.0f} MiB") from None
