"""AdamW on an adapter, with moments in float32 or in 8 bits, and its state as a checkpoint holds it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import bitsandbytes
import numpy as np
import torch

from trainables.training.engine import flattened, unflatten
from trainables.values.checkpoint import EngineState
from trainables.values.config import TrialConfig

ADAMW = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
IN_FLOAT32 = ("exp_avg", "exp_avg_sq")
"""What PyTorch's AdamW keeps of a matrix beside its number of updates."""
IN_8_BITS = ("state1", "state2", "absmax1", "absmax2")
"""The same of bitsandbytes': codes and the scales of their blocks; float32 moments and no scales of small matrices."""


def adamw(
    parameters: Iterable[torch.Tensor], learning_rate: float | torch.Tensor, **implementation: bool
) -> torch.optim.AdamW:
    """AdamW with float32 moments; `implementation` says whether it is fused, and capturable as a CUDA graph."""
    return torch.optim.AdamW(parameters, lr=learning_rate, **ADAMW, **implementation)


def optimizer_of(config: TrialConfig, parameters: Sequence[torch.Tensor], *, fused: bool) -> torch.optim.Optimizer:
    """The eager optimizer that a config names, at the peak of its learning rate."""
    if config.optimizer == "adamw_8bit":
        return bitsandbytes.optim.AdamW8bit(parameters, lr=config.learning_rate, **ADAMW)
    return adamw(parameters, config.learning_rate, fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def moments_of(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor]) -> dict[str, Any]:
    """The fields of EngineState that an eager optimizer fills; zeros before its first update."""
    slots = [optimizer.state.get(p) or {} for p in parameters]  # float16 can skip every step so far
    n_updates = int(slots[0].get("step", 0))
    if isinstance(optimizer, bitsandbytes.optim.AdamW8bit):
        none = np.zeros(0, dtype=np.float32)
        return {"n_updates": n_updates, "first_moments": none, "second_moments": none, "quantized": _quantized(slots)}
    first, second = (
        flattened([slot.get(name, torch.zeros_like(p)) for slot, p in zip(slots, parameters, strict=True)])
        for name in IN_FLOAT32
    )
    return {"n_updates": n_updates, "first_moments": first, "second_moments": second}


def _quantized(slots: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """See EngineState.quantized."""
    found = {}
    for i, slot in enumerate(slots):
        for name in IN_8_BITS:
            if name in slot:
                found[f"{i}.{name}"] = slot[name].cpu().numpy().copy()
    return found


def set_moments(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor], state: EngineState) -> None:
    """Inverse of `moments_of`.

    Raises:
        ValueError: the state is of an adapter of another size, or of another optimizer.
    """
    eight_bits = isinstance(optimizer, bitsandbytes.optim.AdamW8bit)
    if eight_bits != (state.first_moments.size == 0):
        raise ValueError("the checkpoint is of another optimizer")
    if eight_bits:
        _set_quantized(optimizer, parameters, state)
        return
    first, second = (list(map(torch.empty_like, parameters)) for _ in IN_FLOAT32)
    unflatten(state.first_moments, first)
    unflatten(state.second_moments, second)
    if state.n_updates:
        for p, m, v in zip(parameters, first, second, strict=True):
            step = torch.tensor(float(state.n_updates), device=p.device if optimizer.defaults["fused"] else "cpu")
            optimizer.state[p] = {"step": step, "exp_avg": m, "exp_avg_sq": v}


def _set_quantized(
    optimizer: bitsandbytes.optim.AdamW8bit, parameters: Sequence[torch.Tensor], state: EngineState
) -> None:
    """Let bitsandbytes make the buffers of every matrix, and fill them."""
    optimizer.state.clear()
    if not state.n_updates:
        return
    (group,) = optimizer.param_groups
    for i, p in enumerate(parameters):
        optimizer.init_state(group, p, 0, i)
        slot = optimizer.state[p]
        slot["step"] = state.n_updates
        for name in IN_8_BITS:
            if name in slot:
                slot[name].copy_(torch.from_numpy(state.quantized[f"{i}.{name}"]))
