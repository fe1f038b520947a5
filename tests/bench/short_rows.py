"""What rows laid one after the other save where rows are short: `make bench ARGS=short-rows`

python tests/bench/short_rows.py --blocks 2

Rows are as long as Stanford Alpaca's under the prompt format: lengths log-normal, 100 tokens on average, at most 256;
drawn from a seed, of random tokens, since only cost is measured. The base is GPT-2's shape with random weights and as
many blocks and as wide as said; on a GPU it is in 16 bits and steps are captured, on a CPU in float32 and steps are
eager. Each side takes the same steps, the sides in turns. Prints a table and, as its last line, one JSON object.
"""

import argparse
import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any, get_args

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from trainables.cost.device import count_gpus, device_name
from trainables.data.tokenizer import open_tokenizer
from trainables.data.tokens import LEAST_RESPONSE_TOKENS, TokenRow
from trainables.evaluation.held_out import eval_batches
from trainables.models import lora
from trainables.models.families.gpt2 import TARGETS
from trainables.models.padding_free import serves
from trainables.training.batches import MULTIPLE_TOKENS, Batches, BatchPlan
from trainables.training.eager import EagerEngine
from trainables.training.engine import Engine
from trainables.training.graph import GraphEngine
from trainables.training.graph_cache import GraphCache
from trainables.values.config import Loop, TrialConfig

MEAN_TOKENS, SPREAD, MOST_TOKENS = 100, 0.6, 256
"""Mean, standard deviation of the logarithm, and limit of a row's length."""
N_WORDS, HEAD_DIM = 50257, 64
N_ROUNDS = 5
WORD_START, FRAME_TOKENS = "Ġ", 11
"""How GPT-2's tokenizer writes a word after a space; and the tokens of Alpaca's frame, with about two more for the
first words of prompt and response, which no space precedes."""


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


def write_rows(tokenizer: Path, to: Path, n_rows: int = 2000) -> None:
    """Write rows in Alpaca's form, of about those lengths: seeded words of one token each, a third of a row prompt."""
    words = sorted(w[1:] for w in open_tokenizer(tokenizer).get_vocab() if w[0] == WORD_START and w[1:].isalpha())
    drawn = np.random.default_rng(0)
    rows = []
    for length in row_lengths(n_rows):
        n_asked = max(2, length // 3 - FRAME_TOKENS)
        n_said = max(LEAST_RESPONSE_TOKENS, length - n_asked - FRAME_TOKENS - 1)  # and the end token
        asked, said = (" ".join(drawn.choice(words, n)) for n in (n_asked, n_said))
        rows.append({"instruction": asked, "input": "", "output": said})
    to.write_text(json.dumps(rows), encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One way to take the same steps.

    Attributes:
        name: for people.
        loop: see TrialConfig.
        batches: of the steps.
        is_captured: whether steps are.
    """

    name: str
    loop: Loop
    batches: Batches
    is_captured: bool

    @property
    def steps(self) -> list[Any]:
        """In the form of the engine."""
        return self.batches.packed(self.loop) if self.is_captured else self.batches.batches

    @property
    def n_tokens(self) -> float:
        """A step, padding included."""
        if self.is_captured:
            return mean(shape.n_tokens for shape, _ in self.steps)
        return mean(sum(batch.lengths) or batch.input_ids.numel() for batch in self.steps)


def sides(config: TrialConfig, rows: list[TokenRow]) -> list[Side]:
    """The last is ours."""
    is_captured = config.engine == "graph"
    same = {"seed": 0, "n_steps": config.max_steps, "batch_size": config.batch_size, "max_length_tokens": MOST_TOKENS}
    rounded, stock = BatchPlan(**same, multiple=MULTIPLE_TOKENS), BatchPlan(**same, multiple=1)
    ways: list[tuple[str, Loop, BatchPlan]] = [
        (f"standard loop, padded to a multiple of {MULTIPLE_TOKENS}", "standard", rounded),
        (f"lean loop, padded to a multiple of {MULTIPLE_TOKENS}", "lean", rounded),
    ]
    if not is_captured:  # whose shapes are always rounded
        ways = [("standard loop, padded to the longest", "standard", stock), *ways[1:]]
        ways.insert(1, ("lean loop, padded to the longest", "lean", stock))
    found = [Side(name=n, loop=loop, batches=_padded(plan, rows), is_captured=is_captured) for n, loop, plan in ways]
    flat = Batches(rounded if is_captured else stock, rows, pad_id=0, lie_flat=True)
    return [*found, Side(name="lean loop, one after the other", loop="lean", batches=flat, is_captured=is_captured)]


def _padded(plan: BatchPlan, rows: list[TokenRow]) -> Batches:
    return Batches(plan, rows, pad_id=0, lie_flat=False)


def base_of(n_blocks: int, width: int, device: str) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"n_layer": n_blocks, "n_embd": width, "n_head": width // HEAD_DIM, "vocab_size": N_WORDS}
    shape = GPT2Config(**sizes, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0)
    base = AutoModelForCausalLM.from_config(shape).requires_grad_(False)
    assert serves(base)
    return base.to(device, torch.float32 if device == "cpu" else torch.bfloat16)


def engines_of(base: PreTrainedModel, config: TrialConfig, all_sides: list[Side]) -> dict[Loop, Engine]:
    """One for each loop, which has captured the steps of every side where they are."""
    engines: dict[Loop, Engine] = {}
    graphs = GraphCache()
    for loop in get_args(Loop):
        own = replace(config, loop=loop)
        if config.engine == "eager":
            other = copy.deepcopy(base)  # an adapter is attached to it
            model = lora.attach(other, own, base_name="random")
            engines[loop] = EagerEngine(model, own, compute_dtype="float32", device="cpu")
            continue
        shapes = [shape for side in all_sides if side.loop == loop for shape, _ in side.steps]
        few = eval_batches(base, drawn_rows([32]))
        captured = graphs.step_graphs(base, own, shapes, eval_batches=few, compute_dtype="bfloat16")
        engines[loop] = GraphEngine(lora.fresh_matrices(base, own).values(), own, captured)
    return engines


def seconds_of(engine: Engine, steps: list[Any]) -> float:
    """Seconds a step, from the first to the last."""
    start = perf_counter()
    float(engine.run(steps)[-1])
    return (perf_counter() - start) / len(steps)


def main() -> None:
    device = "cuda" if count_gpus() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=2 if device == "cpu" else 24)
    parser.add_argument("--width", type=int, default=768 if device == "cpu" else 1024)
    parser.add_argument("--rows", type=int, default=4, help="of a step")
    parser.add_argument("--steps", type=int, default=10 if device == "cpu" else 200, help="of each round")
    args = parser.parse_args()
    config = TrialConfig(
        precision="16bit",
        rank=8,
        alpha=16,
        targets=TARGETS,
        dropout=0.05,
        loop="lean",
        engine="eager" if device == "cpu" else "graph",
        batch_size=args.rows,
        max_length_tokens=MOST_TOKENS,
        max_steps=args.steps,
    )
    lengths = row_lengths(config.batch_size * args.steps)
    all_sides = sides(config, drawn_rows(lengths))
    engines = engines_of(base_of(args.blocks, args.width, device), config, all_sides)
    for side in all_sides:
        engines[side.loop].run(side.steps[:1])
    seconds: dict[str, list[float]] = {side.name: [] for side in all_sides}
    for _ in range(N_ROUNDS):
        for side in all_sides:
            seconds[side.name].append(seconds_of(engines[side.loop], side.steps))
    found = {s.name: {"tokens": s.n_tokens, "ms": 1000 * median(seconds[s.name])} for s in all_sides}
    ours = found[all_sides[-1].name]["ms"]
    where = (
        f"CPU, {torch.get_num_threads()} threads, float32" if device == "cpu" else f"{device_name(device)}, bfloat16"
    )
    print(f"{args.blocks} blocks of GPT-2's of width {args.width}, random weights, {where};")
    print(f"rows of {np.mean(lengths):.0f} tokens on average, {args.rows} a step; medians of {N_ROUNDS} rounds")
    print(f"{'rows':45}{'tokens a step':>15}{'ms a step':>12}{'ratio':>8}")
    for name, figures in found.items():
        print(f"{name:45}{figures['tokens']:15.0f}{figures['ms']:12.2f}{figures['ms'] / ours:8.2f}")
    sizes = {"blocks": args.blocks, "width": args.width, "rows": args.rows, "mean_tokens": float(np.mean(lengths))}
    print(json.dumps(sizes | {"device": device_name(device), "sides": found}))


if __name__ == "__main__":
    main()
