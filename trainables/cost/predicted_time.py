"""Predicted time of a training step and of a trial, from shapes and from two speeds that the device was measured at.

A step is matrix products, at the device's speed for them, and everything else, which moves what the forward pass keeps
through memory again and again. The shares are set by hand with the captured steps of one H200 in view (run 1 of
tests/bench/LOG.md: GPT-2 Medium, 4 x 256 tokens), taken to reach 650 TFLOP/s and 4 TB/s.
Another device enters by its own two speeds, never by its name. Good for "an evening or a week", not for comparing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from trainables.cost.gpus import Gpu
from trainables.cost.predicted_memory import predicted_breakdown
from trainables.cost.recipe import recipe_of
from trainables.cost.resident import quantized
from trainables.cost.shape import Shape
from trainables.values.config import ComputeDtype, TrialConfig
from trainables.values.results import MIB

PRODUCTS_SHARE = 0.7
"""Share of the speed of one large matrix product that a step's products reach."""
PASSES = {"lean": 36.0, "standard": 27.0}
"""How often a step moves its activations through memory; the lean loop keeps fewer and computes more of them again."""
UNPACKINGS = {"lean": 4.0, "standard": 9.0}
"""Time to dequantize all weights in both passes of a 4-bit step, in times that it takes to read and write them once: by
one kernel in the lean loop, by bitsandbytes' three in the other."""
EAGER_SECONDS = 0.04
"""Least time of an eager step, on any device: the host's own work."""
REST_SHARE = 0.83
"""Time of a trial beside its training steps, relative to theirs: cost, four evaluations, comparison."""
PRODUCTS_REACHED, MEMORY_REACHED = 0.66, 0.83
"""Of the published speeds: what that H200 reaches of its 989 TFLOP/s and 4.8 TB/s."""
N_PRODUCT = {"cuda": 4096, "cpu": 256}
"""Rows and columns of the matrices whose product is timed."""
N_COPIED_MIB = {"cuda": 256, "cpu": 16}
N_RUNS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Two measured speeds of a device.

    Attributes:
        products_flops: floating-point operations a second of a large matrix product in the compute dtype.
        memory_bytes: a second, read and written, of a large copy.
    """

    products_flops: float
    memory_bytes: float


def published(gpu: Gpu) -> Speed:
    """The speeds that a GPU would be measured at, from those that are published.

    A GPU that its power or its cooling limits, as a T4, comes to less.
    """
    products, memory = PRODUCTS_REACHED * gpu.tflops * 1e12, MEMORY_REACHED * gpu.gb_per_s * 1e9
    return Speed(products_flops=products, memory_bytes=memory)


def measure(device: str, dtype: ComputeDtype) -> Speed:
    """Time one product and one copy on a device ("cuda" or "cpu"); milliseconds once a GPU has started."""
    import torch

    n, n_bytes = N_PRODUCT[device], N_COPIED_MIB[device] * MIB
    a = torch.randn(n, n, device=device).to(getattr(torch, dtype))
    source = torch.zeros(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    product = _seconds(lambda: a @ a, wait)
    copy = _seconds(lambda: target.copy_(source), wait)
    return Speed(products_flops=2 * n**3 / product, memory_bytes=2 * n_bytes / copy)


def _seconds(work: Callable[[], object], wait: Callable[[], object]) -> float:
    """The best of some runs after a first one, as others may use the device; `wait` returns when it is done."""
    best = float("inf")
    for i in range(1 + N_RUNS):
        begin = perf_counter()
        work()
        wait()
        if i:
            best = min(best, perf_counter() - begin)
    return max(best, 1e-9)


def step_seconds(shape: Shape, config: TrialConfig, dtype: ComputeDtype, speed: Speed) -> float:
    """Predicted `seconds_per_step` of full batches.

    Products counted: the forward pass and the gradient of every module's input; frozen weights need no gradient.
    """
    n_tokens = config.batch_size * config.max_length_tokens
    blocks = shape.n_linear_weights
    head = shape.vocab_size * shape.hidden_size
    attention = 2 * shape.n_layer * config.max_length_tokens * shape.query_size
    flops = 4 * n_tokens * (blocks + head + attention)
    kept_bytes = predicted_breakdown(shape, config, dtype).activations_mib * MIB
    seconds = flops / (PRODUCTS_SHARE * speed.products_flops) + PASSES[config.loop] * kept_bytes / speed.memory_bytes
    if config.precision == "nf4":  # 4 bits read, the compute dtype written
        unpacked = sum(n * of.inputs * of.outputs for of, n in quantized(shape, recipe_of(config, dtype)).items())
        seconds += UNPACKINGS[config.loop] * unpacked * (0.5 + (4 if dtype == "float32" else 2)) / speed.memory_bytes
    return max(seconds, EAGER_SECONDS) if config.engine == "eager" else seconds


def trial_seconds(shape: Shape, config: TrialConfig, dtype: ComputeDtype, speed: Speed) -> float:
    """Predicted time of a trial that is not pruned."""
    return (1 + REST_SHARE) * config.max_steps * step_seconds(shape, config, dtype, speed)
