"""What 16-bit models made of some rows, kept for the next comparison: seed replicates are read again and again."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch

from trainables.evaluation.readers import Reader, Rows, Texts

Adapter = Mapping[str, bytes]
"""peft's files by name, see trainables.models.lora.to_files."""
HOST_BYTES = 2**28
"""For readings on a CPU."""
GPU_PARTS = 64
"""Of a GPU's memory, one is for readings."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Reading:
    """What one model made of a set of rows.

    Attributes:
        texts: greedy continuations of the decoded rows.
        states: (n_response_tokens, width), on the model's device.
    """

    texts: Texts
    states: torch.Tensor

    @classmethod
    def by(cls, reader: Reader, rows: Rows) -> Self:
        """Read now."""
        return cls(texts=reader.texts(rows), states=reader.states(rows))


class Readings:
    """Those of the base without an adapter, and of as many adapters as there is room for; of one worker."""

    def __init__(self) -> None:
        self._of_base: dict[Rows, Reading] = {}
        self._of_adapters: dict[tuple[Rows, str], Reading] = {}

    def of_base(self, rows: Rows) -> Reading | None:
        """By the base without an adapter; None where it has not read them yet."""
        return self._of_base.get(tuple(rows))

    def of(self, reader: Reader, rows: Rows, files: Adapter | None) -> Reading:
        """By the 16-bit base with an adapter, or without where that is None: what is kept, or else by the reader.

        What finds no room is not kept, and nothing makes room for it: seeds are read in turn, so that what was read
        longest ago is needed first.
        """
        if files is None:
            if tuple(rows) not in self._of_base:
                self._of_base[tuple(rows)] = Reading.by(reader, rows)
            return self._of_base[tuple(rows)]
        key = tuple(rows), _digest(files)
        if key in self._of_adapters:
            return self._of_adapters[key]
        reading = Reading.by(reader, rows)
        kept = [reading, *self._of_base.values(), *self._of_adapters.values()]
        if sum(one.states.nbytes for one in kept) <= _room(reading.states.device):
            self._of_adapters[key] = reading
        return reading

    def clear(self) -> None:
        """Give up all."""
        self._of_base.clear()
        self._of_adapters.clear()


def _room(device: torch.device) -> int:
    """Bytes that the states of all may take."""
    return HOST_BYTES if device.type == "cpu" else torch.cuda.get_device_properties(device).total_memory // GPU_PARTS


def _digest(files: Adapter) -> str:
    """Of an adapter's files, which say all that a base reads with it by."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
