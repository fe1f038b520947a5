"""What rows laid one after the other save where rows are short: `make bench ARGS=short-rows`

python tests/bench/short_rows.py --blocks 2

Rows are as long as Stanford Alpaca's under the prompt format: lengths log-normal, 100 tokens on average, at most 256;
drawn from a seed, of random tokens, since only cost is measured. The base is GPT-2's shape with random weights and as
many blocks as said. Each side takes the same steps, the sides in turns. Prints a table and, as its last line, one JSON
object.
"""

import argparse
import json
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import get_args

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from trainables.data.tokens import TokenRow
from trainables.models import lora
from trainables.models.families.gpt2 import TARGETS
from trainables.models.padding_free import serves
from trainables.training.batches import MULTIPLE_TOKENS, Batch, Batches, BatchPlan
from trainables.training.eager import EagerEngine
from trainables.values.config import Loop, TrialConfig

MEAN_TOKENS, SPREAD, MOST_TOKENS = 100, 0.6, 256
"""Mean, standard deviation of the logarithm, and limit of a row's length."""
N_WORDS = 50257
N_ROUNDS = 5


def row_lengths(n_rows: int, seed: int = 0) -> list[int]:
    """Tokens of each row."""
    location = np.log(MEAN_TOKENS) - SPREAD**2 / 2  # of the normal distribution whose exponential has that mean
    drawn = np.random.default_rng(seed).lognormal(location, SPREAD, n_rows)
    return [int(length) for length in drawn.round().clip(24, MOST_TOKENS)]


def drawn_rows(lengths: list[int], seed: int = 0) -> list[TokenRow]:
    """Rows of those lengths; a third of each is prompt."""
    words = np.random.default_rng(seed).integers(1, N_WORDS, sum(lengths)).tolist()
    ends = np.cumsum(lengths).tolist()
    return [
        TokenRow(input_ids=tuple(words[end - length : end]), n_prompt_tokens=length // 3)
        for end, length in zip(ends, lengths, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One way to take the same steps.

    Attributes:
        name: for people.
        loop: see TrialConfig.
        batches: of the steps; only those with lengths are laid one after the other.
    """

    name: str
    loop: Loop
    batches: list[Batch]

    @property
    def n_tokens(self) -> float:
        """A step, padding included."""
        return sum(sum(batch.lengths) or batch.input_ids.numel() for batch in self.batches) / len(self.batches)


def sides(config: TrialConfig, rows: list[TokenRow]) -> list[Side]:
    """The last is ours."""
    same = {"seed": 0, "n_steps": config.max_steps, "batch_size": config.batch_size, "max_length_tokens": MOST_TOKENS}
    rounded = Batches(BatchPlan(**same, multiple=MULTIPLE_TOKENS), rows, pad_id=0).batches
    stock = Batches(BatchPlan(**same, multiple=1), rows, pad_id=0).batches
    padded, rounded = ([batch._replace(lengths=()) for batch in batches] for batches in (stock, rounded))
    return [
        Side(name="standard loop, padded to the longest", loop="standard", batches=padded),
        Side(name="lean loop, padded to the longest", loop="lean", batches=padded),
        Side(name=f"lean loop, padded to a multiple of {MULTIPLE_TOKENS}", loop="lean", batches=rounded),
        Side(name="lean loop, one after the other", loop="lean", batches=stock),
    ]


def engine_of(config: TrialConfig, n_blocks: int) -> EagerEngine:
    """On a base of its own."""
    torch.manual_seed(0)
    shape = GPT2Config(n_layer=n_blocks, vocab_size=N_WORDS, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0)
    base = AutoModelForCausalLM.from_config(shape).requires_grad_(False)
    assert serves(base)
    return EagerEngine(lora.attach(base, config, base_name="random"), config, compute_dtype="float32", device="cpu")


def seconds_of(engine: EagerEngine, batches: list[Batch]) -> float:
    """Seconds a step, from the first batch to the last."""
    start = perf_counter()
    float(engine.run(batches)[-1])
    return (perf_counter() - start) / len(batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help="of each round")
    args = parser.parse_args()
    config = TrialConfig(
        precision="16bit",
        rank=8,
        alpha=16,
        targets=TARGETS,
        dropout=0.05,
        loop="lean",
        batch_size=4,
        max_length_tokens=MOST_TOKENS,
        max_steps=args.steps,
    )
    engines = {loop: engine_of(replace(config, loop=loop), args.blocks) for loop in get_args(Loop)}
    lengths = row_lengths(config.batch_size * args.steps)
    all_sides = sides(config, drawn_rows(lengths))
    for side in all_sides:
        engines[side.loop].run(side.batches[:1])
    seconds: dict[str, list[float]] = {side.name: [] for side in all_sides}
    for _ in range(N_ROUNDS):
        for side in all_sides:
            seconds[side.name].append(seconds_of(engines[side.loop], side.batches))
    found = {s.name: {"tokens": s.n_tokens, "ms": 1000 * median(seconds[s.name])} for s in all_sides}
    ours = found[all_sides[-1].name]["ms"]
    print(f"{args.blocks} blocks of GPT-2's, random weights, CPU, {torch.get_num_threads()} threads, float32;")
    print(f"rows of {np.mean(lengths):.0f} tokens on average, 4 a step; medians of {N_ROUNDS} rounds")
    print(f"{'rows':40}{'tokens a step':>15}{'ms a step':>12}{'ratio':>8}")
    for name, figures in found.items():
        print(f"{name:40}{figures['tokens']:15.0f}{figures['ms']:12.1f}{figures['ms'] / ours:8.2f}")
    print(json.dumps({"blocks": args.blocks, "mean_tokens": float(np.mean(lengths)), "sides": found}))


if __name__ == "__main__":
    main()
