"""The frozen bases of a worker, one of each form: loaded, warmed up, and with full weights where there is room."""

import gc
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from trainables.cost.memory import allocated_mib
from trainables.models import base_model
from trainables.models.full_weights import drop_full_weights, have_room, keep_full_weights, kept_weights
from trainables.training.warm_up import warm_up
from trainables.values.config import BaseForm
from trainables.values.workload import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LIBRARIES_MIB: dict[str, float] = {}
"""Device -> MiB of the workspaces that its libraries keep from first use on. They allocate once a process, not once a
worker's bases: so this is the process's, too."""


class FrozenBases:
    """As many as were asked for. On a GPU all stay on the device, so that no trial waits for weights."""

    def __init__(self, workload: Workload, device: str) -> None:
        self._workload, self._device = workload, device
        self._loaded: dict[BaseForm, PreTrainedModel] = {}
        self._mib: dict[BaseForm, float] = {}
        self._is_short = False  # of memory, which has run out once

    def __len__(self) -> int:
        return len(self._loaded)

    def get(self, form: BaseForm) -> "PreTrainedModel | None":
        """None where it was not loaded."""
        return self._loaded.get(form)

    def load(self, form: BaseForm) -> "PreTrainedModel":
        """Load a base, and keep it.

        Raises:
            torch.cuda.OutOfMemoryError: half of it may be there until `clear`.
        """
        gc.collect()
        before = allocated_mib(self._device) if self._device == "cuda" else 0.0
        base = self._loaded[form] = base_model.load(self._workload, form[0], self._device, keep_16bit=form[1])
        if self._device == "cuda":
            loaded = allocated_mib(self._device)
            self._mib[form] = loaded - before
            warm_up(base, form, self._workload, self._device)
            _LIBRARIES_MIB.setdefault(self._device, allocated_mib(self._device) - loaded)
        if not self._is_short and have_room(base):
            with suppress(torch.cuda.OutOfMemoryError):  # another process was faster
                keep_full_weights(base)
        gc.freeze()  # a collection would look through all of this again each time
        return base

    def mib_of(self, form: BaseForm) -> float:
        """What a loaded base takes on a GPU, without full weights beside 4-bit ones."""
        return self._mib[form]

    def others_mib(self, form: BaseForm) -> float:
        """Allocated MiB that a fresh process with a base of this form alone would not have, see
        WorkerCache.others_mib."""
        return allocated_mib(self._device) - self._mib[form] - _LIBRARIES_MIB[self._device]

    @property
    def have_full_weights(self) -> bool:
        """Whether any of them keeps some."""
        return any(map(kept_weights, self._loaded.values()))

    def drop_full_weights(self) -> None:
        """Give up full weights, which graphs must read no more, and keep none from now on."""
        self._is_short = True
        for base in self._loaded.values():
            drop_full_weights(base)

    def clear(self) -> None:
        """Give up all."""
        self._loaded.clear()
        self._mib.clear()
        gc.unfreeze()
        gc.collect()  # a 4-bit weight refers to its module and back: only this frees it
