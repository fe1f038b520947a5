"""Figures of others that this program must meet: NF4's error, bytes of loaded models, peaks: `make bench ARGS=outside`

python tests/bench/outside.py --draws 200

Nothing is fitted to them. Needs no GPU and no network; more draws make the first table's error smaller.

- NF4: the mean absolute error that bitsandbytes publishes with its own tests of N(0, 1), 1024 x 1024, in blocks of 64,
  with the standard deviation over 200 draws.
- Resident memory: foundation-model-stack/fms-acceleration, scripts/benchmarks/refs/
  a100_80gb_update_cross_entropy_and_deps.csv (Mistral) and a100_80gb_liger.csv (Llama 3), column
  mem_torch_mem_alloc_in_bytes, with `accelerated-peft-bnb` and `accelerated-peft-bnb-foak`: NF4 with double
  quantization, LoRA r16 on q, k, v, o, bfloat16, rows of 4,096 tokens; what stays allocated on one A100 when training
  has ended: base, constants, adapter, AdamW's moments, workspaces of cuBLAS, and the last batch (ids, mask, labels of
  8 bytes a token).
- Peaks: tests/bench/memory_published.py.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from numpy.typing import NDArray

from tests.bench import memory_published
from tests.support.nf4 import BLOCK, nf4_code_book
from trainables.cost.gpus import SMALL_WORKSPACES_MIB
from trainables.cost.recipe import stock
from trainables.cost.resident import adapter_bytes, base_bytes, constants_bytes, moments_bytes
from trainables.models.families.gated import gated_shape
from trainables.values.results import MIB

SIZE = 1024
PUBLISHED_ERROR, PUBLISHED_SPREAD, PUBLISHED_DRAWS = 0.072798, 0.000074, 200
MAX_DEVIATIONS = 4.0
"""Standard errors that a mean of ours may lie away from the published one."""
MAX_RESIDENT_PER_CENT = 0.01
LENGTH, BATCH_BYTES = 4096, 3 * 8
"""Tokens of a row there; bytes of a token's id, mask and label."""

Floats = NDArray[np.float32]
SIZES = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": LENGTH,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
MODELS = {
    "Mistral-7B-v0.1": SIZES | {"model_type": "mistral", "vocab_size": 32000},
    "Meta-Llama-3-8B": SIZES | {"model_type": "llama", "vocab_size": 128256},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """What a 4-bit model leaves allocated after training, published and predicted; bytes."""

    model: str
    batch_size: int
    published: int

    @property
    def predicted(self) -> float:
        shape = gated_shape(MODELS[self.model])
        recipe = stock(
            precision="nf4",
            rank=16,
            targets=("q_proj", "k_proj", "v_proj", "o_proj"),
            batch_size=self.batch_size,
            max_length_tokens=LENGTH,
            compute_dtype="bfloat16",
        )
        resident = base_bytes(shape, recipe) + constants_bytes(shape, recipe)
        resident += adapter_bytes(shape, recipe) + moments_bytes(shape, recipe)
        return resident + SMALL_WORKSPACES_MIB * MIB + recipe.n_tokens * BATCH_BYTES

    @property
    def error_per_cent(self) -> float:
        return 100 * (self.predicted / self.published - 1)


RESIDENT = (
    Resident(model="Mistral-7B-v0.1", batch_size=4, published=4306496512),
    Resident(model="Mistral-7B-v0.1", batch_size=8, published=4306889728),
    Resident(model="Meta-Llama-3-8B", batch_size=4, published=5884111872),
    Resident(model="Meta-Llama-3-8B", batch_size=8, published=5884505088),
)


def by_numpy(weights: Floats) -> Floats:
    """NF4 and back from the paper's code book alone (tests/support/nf4.py), scales in float32."""
    blocks, levels = weights.reshape(-1, BLOCK), nf4_code_book().astype(np.float32)
    absmax = np.abs(blocks).max(axis=1, keepdims=True)
    nearest = np.searchsorted((levels[:-1] + levels[1:]) / 2, blocks / absmax)
    return (levels[nearest] * absmax).reshape(weights.shape)


def by_bitsandbytes(weights: Floats) -> Floats:
    """The same by bitsandbytes, on the CPU."""
    packed, state = quantize_4bit(torch.from_numpy(weights), blocksize=BLOCK, quant_type="nf4")
    return dequantize_4bit(packed, state).numpy()


def mean_errors(round_trip: Callable[[Floats], Floats], n_draws: int) -> NDArray[np.float64]:
    """(n_draws,), mean absolute error of each draw of N(0, 1); the same draws for every round trip."""
    found = np.empty(n_draws)
    for draw in range(n_draws):
        weights = np.random.default_rng(draw).standard_normal((SIZE, SIZE), dtype=np.float32)
        found[draw] = np.abs(weights - round_trip(weights)).mean(dtype=np.float64)
    return found


def deviations(errors: NDArray[np.float64]) -> float:
    """How many standard errors the mean lies from the published one, both means' own spread counted."""
    standard_error = PUBLISHED_SPREAD * sqrt(1 / len(errors) + 1 / PUBLISHED_DRAWS)
    return abs(float(errors.mean()) - PUBLISHED_ERROR) / standard_error


def show(n_draws: int) -> None:
    """The tables."""
    print(f"NF4 in blocks of {BLOCK}, N(0, 1), {SIZE} x {SIZE}: mean absolute error\n")
    print(f"{'by':<28}  {'draws':>5}  {'mean':>8}  {'sd':>8}  standard errors apart")
    print(f"{'bitsandbytes, published':<28}  {PUBLISHED_DRAWS:5}  {PUBLISHED_ERROR:8.6f}  {PUBLISHED_SPREAD:8.6f}")
    for name, round_trip in {"NumPy, from the paper": by_numpy, "bitsandbytes, on this CPU": by_bitsandbytes}.items():
        errors = mean_errors(round_trip, n_draws)
        spread = errors.std(ddof=1) if n_draws > 1 else float("nan")
        print(f"{name:<28}  {n_draws:5}  {errors.mean():8.6f}  {spread:8.6f}  {deviations(errors):.1f}")
    print("\nWhat 4-bit models leave allocated after training (bytes; fms-acceleration, one A100)\n")
    print(f"{'model':<18}  {'batch':>5}  {'published':>13}  {'predicted':>13}  {'error %':>9}")
    for row in RESIDENT:
        sizes = f"{row.published:13,}  {row.predicted:13,.0f}"
        print(f"{row.model:<18}  {row.batch_size:5}  {sizes}  {row.error_per_cent:+9.4f}")
    print()
    memory_published.show()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20, help="of the first table (default: 20; published: 200)")
    show(parser.parse_args().draws)


if __name__ == "__main__":
    main()
