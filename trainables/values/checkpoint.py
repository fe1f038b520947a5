"""The state of a trial after a rung, from which it can go on exactly; safetensors when written.

Imports no PyTorch: the process that stores checkpoints has no use for it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

VECTORS = ("weights", "first_moments", "second_moments")
FORMAT = "qlora-sweep checkpoint 2"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """What an engine carries from one step to the next.

    Attributes:
        weights: of the adapter, (n,) float32: its matrices flattened, in the order in which peft attaches them.
        first_moments, second_moments: AdamW's m and v (Loshchilov & Hutter 2019, arXiv:1711.05101), the same.
        n_updates: steps that the optimizer took; float16 skips some.
        n_bad_gradients: steps whose gradient norm was not finite.
        n_steps: steps done, those that the optimizer skipped too; the next step's dropout masks follow from it.
        loss_scale, n_good_steps: of float16's loss scaling, and steps since it changed; 1 and 0 in other arithmetic.
        quantized: what an optimizer with 8-bit moments keeps in place of both vectors of moments, which are then empty:
            its codes and their scales, by the place of their matrix and their name in bitsandbytes' own state.
    """

    weights: NDArray[np.float32]
    first_moments: NDArray[np.float32]
    second_moments: NDArray[np.float32]
    n_updates: int
    n_bad_gradients: int
    n_steps: int
    loss_scale: float = 1.0
    n_good_steps: int = 0
    quantized: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A trial after a rung.

    Attributes:
        key: of the trial.
        step: optimizer steps done.
        seconds: of training until then.
        curve: of the training loss since the last measurement, see trainables.values.results.curve_of.
    """

    key: str
    step: int
    seconds: float
    engine: EngineState
    curve: tuple[tuple[int, float], ...] = ()

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        arrays = (*VECTORS, "quantized")
        numbers = {n: getattr(self.engine, n) for n in EngineState.__dataclass_fields__ if n not in arrays}
        facts = {"key": self.key, "step": self.step, "seconds": self.seconds, "curve": self.curve, "engine": numbers}
        text = json.dumps({"format": FORMAT, **facts})  # one entry: safetensors keeps several in no order
        tensors = {name: getattr(self.engine, name) for name in VECTORS} | dict(self.engine.quantized)
        return save(tensors, metadata={"checkpoint": text})

    @classmethod
    def from_bytes(cls, content: bytes) -> "Checkpoint":
        """Read back `to_bytes`.

        Raises:
            ValueError: the content is damaged, or something else.
        """
        try:
            length = int.from_bytes(content[:8], "little")  # the format: header length, JSON header, data
            facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["checkpoint"])
            if (file_format := facts.pop("format")) != FORMAT:
                raise ValueError(f"its format is {file_format!r}")
            tensors = load(content)
            vectors = {name: tensors.pop(name) for name in VECTORS}
            engine = EngineState(**vectors, **facts.pop("engine"), quantized=tensors)
            curve = tuple((int(step), float(loss)) for step, loss in facts.pop("curve", ()))  # older ones have none
        except (SafetensorError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"no checkpoint of a trial ({type(error).__name__}: {error})") from None
        return cls(**facts, engine=engine, curve=curve)
