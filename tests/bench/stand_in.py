"""Train a stand-in for GPT-2 from nothing, on rows that no sweep of the same file uses.

python tests/bench/stand_in.py CONFIG_FOLDER ROWS OUT_FOLDER --seconds 120

Where only a config and a tokenizer can be had, similarity on random weights means nothing. A stand-in
has learnt a little: enough that a LoRA run has an effect and 4 bits something to spoil. It is no GPT-2.

OUT_FOLDER gets what `--base-model` takes (config, tokenizer, float32 weights), base_model.STAND_IN_FILE, by which
every result over it says what it is, and both sets of rows: own_rows.json and, for `--data`, sweep_rows.json.
The seed decides weights and order of rows; the schedule follows the clock, so two runs differ.
"""

import argparse
import json
import math
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from trainables.data import alpaca
from trainables.data import tokens as data
from trainables.data.rows import read_rows
from trainables.data.splits import split_rows
from trainables.models.base_model import STAND_IN_FILE
from trainables.values.errors import ConfigError, DataError, SweepError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HELD_OUT_ROWS = 64
BATCH_ROWS = 16
MAX_LENGTH_TOKENS = 512
PEAK_LEARNING_RATE = 3e-4
WARM_UP_SHARE, LAST_RATE_SHARE = 0.05, 0.1
WEIGHT_DECAY = 0.1
MAX_GRAD_NORM = 1.0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
N_CHECKS = 20
"""Times that the held-out loss is taken, evenly over the time; the weights with the least are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The held-out loss at one moment of the training.

    Attributes:
        seconds: since the start. n_steps, n_tokens: trained on until then, padding not counted.
        held_out_loss_nats: over response tokens, see trainables.evaluation.held_out.eval_loss.
    """

    seconds: float
    n_steps: int
    n_tokens: int
    held_out_loss_nats: float


def parted(rows: Sequence[alpaca.Row]) -> tuple[list[alpaca.Row], list[alpaca.Row]]:
    """The rows of a sweep's splits, and those whose instruction none of them has.

    Raises:
        DataError: too few rows for the splits, or too few are left.
    """
    of_sweep = [row for split in split_rows(rows).values() for row in split]
    taken = {row.instruction for row in of_sweep}
    own = [row for row in rows if row.instruction not in taken]
    if len(own) < 2 * HELD_OUT_ROWS:
        raise DataError(
            f"ROWS: only {len(own)} rows are left beside a sweep's {len(of_sweep)}; "
            f"a stand-in needs {2 * HELD_OUT_ROWS} ({HELD_OUT_ROWS} of them held out)"
        )
    return of_sweep, own


def tokenized(rows: Sequence[alpaca.Row], tokenizer: "PreTrainedTokenizerBase") -> list[data.TokenRow]:
    """Rows as prompt, response and end token, as a sweep has them."""
    texts = [text for row in rows for text in (row.prompt, row.output)]
    ids = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    end = tokenizer.eos_token_id
    return [
        data.TokenRow(input_ids=(*prompt, *response, end), n_prompt_tokens=len(prompt))
        for prompt, response in zip(ids[::2], ids[1::2], strict=True)
    ]


def learning_rate(share: float) -> float:
    """At a share of the time from 0 to 1: linear warm-up, then a cosine."""
    if share < WARM_UP_SHARE:
        return PEAK_LEARNING_RATE * share / WARM_UP_SHARE
    done = min(1.0, (share - WARM_UP_SHARE) / (1 - WARM_UP_SHARE))
    return PEAK_LEARNING_RATE * (LAST_RATE_SHARE + (1 - LAST_RATE_SHARE) * 0.5 * (1 + math.cos(math.pi * done)))


def untrained(folder: Path, seed: int) -> "PreTrainedModel":
    """The model of a folder's config with seeded weights in float32; its dropouts are kept."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
    )


def train(
    model: "PreTrainedModel",
    rows: Sequence[data.TokenRow],
    held_out: Sequence[data.TokenRow],
    *,
    seconds: float,
    seed: int,
    clock: Callable[[], float] = perf_counter,
) -> list[Check]:
    """Full training of all weights on whole rows, prompts too, for so many seconds; leaves the best weights in place.

    Args:
        clock: gives seconds.
    Returns:
        Every check, the first of them before any step.
    """
    import torch

    from trainables.evaluation.held_out import eval_loss

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, weight_decay=WEIGHT_DECAY, fused=model.device.type == "cuda"
    )
    batches = _batches(rows, min(MAX_LENGTH_TOKENS, model.config.n_positions), model.config.eos_token_id, seed)
    checks = [Check(seconds=0.0, n_steps=0, n_tokens=0, held_out_loss_nats=eval_loss(model, held_out))]
    best = _copied(model)
    n_steps = n_tokens = 0
    spent, start = 0.0, clock()
    while spent < seconds:
        input_ids, labels = next(batches)
        _step(model, optimizer, input_ids, labels, learning_rate(spent / seconds))
        n_steps, n_tokens = n_steps + 1, n_tokens + int((labels != data.IGNORE).sum())
        spent = clock() - start
        if spent >= seconds * len(checks) / N_CHECKS:
            loss = eval_loss(model, held_out)
            if loss < min(check.held_out_loss_nats for check in checks):
                best = _copied(model)
            checks.append(Check(seconds=spent, n_steps=n_steps, n_tokens=n_tokens, held_out_loss_nats=loss))
            print(f"{spent:6.1f} s  {n_steps:6} steps  held-out loss {loss:.3f}", file=sys.stderr, flush=True)
            spent = clock() - start
    model.load_state_dict(best)
    return checks


def _step(
    model: "PreTrainedModel",
    optimizer: "torch.optim.Optimizer",
    input_ids: "torch.Tensor",
    labels: "torch.Tensor",
    rate: float,
) -> None:
    import torch
    from torch.nn import functional as F

    for group in optimizer.param_groups:
        group["lr"] = rate
    with _arithmetic(model.device):
        logits = model.train()(input_ids=input_ids.to(model.device), use_cache=False).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().to(model.device))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad()
    loss.item()  # waits for the device: the schedule follows the clock


def _batches(
    rows: Sequence[data.TokenRow], length: int, end: int, seed: int
) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
    """Endless batches of rows in seeded order; the loss is of all tokens."""
    import torch

    whole = [replace(row, n_prompt_tokens=0) for row in rows]
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(whole), generator=generator)
        for chosen in order.split(BATCH_ROWS):
            yield data.pad([whole[i] for i in chosen], max_length_tokens=length, pad_id=end)


def _arithmetic(device: "torch.device") -> AbstractContextManager[Any]:
    """bfloat16 products over float32 weights where the device has them in hardware."""
    import torch

    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast("cuda", torch.bfloat16) if has_bfloat16 else nullcontext()


def _copied(model: "PreTrainedModel") -> "dict[str, torch.Tensor]":
    return {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()}


def build(
    config_folder: Path,
    source: str,
    out: Path,
    *,
    seconds: float,
    seed: int,
    device: str,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, Any]:
    """Make the whole folder; returns what STAND_IN_FILE says.

    Raises:
        ConfigError: no config there, the folder is not empty, or no time.
        DataError: too few rows.
    """
    from transformers import AutoTokenizer

    from trainables.cost.device import device_name

    if not (config_folder / "config.json").is_file():
        raise ConfigError(f"CONFIG_FOLDER: no config.json in {str(config_folder)!r}")
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"OUT_FOLDER: {str(out)!r} is not empty; name another")
    if not 0 < seconds < math.inf:
        raise ConfigError(f"SECONDS must be positive and finite, got {seconds}")
    of_sweep, own = parted(read_rows(source).rows)
    tokenizer = AutoTokenizer.from_pretrained(config_folder, local_files_only=True, trust_remote_code=False)
    tokens = tokenized(own, tokenizer)
    held_out, rest = tokens[:HELD_OUT_ROWS], tokens[HELD_OUT_ROWS:]
    model = untrained(config_folder, seed).to(device)
    checks = train(model, rest, held_out, seconds=seconds, seed=seed, clock=clock)
    kept = min(checks, key=lambda check: check.held_out_loss_nats)
    facts = {
        **asdict(kept),  # seconds, n_steps and n_tokens of the weights that were kept
        "held_out_loss_before_nats": checks[0].held_out_loss_nats,
        "run_seconds": checks[-1].seconds,
        "n_rows": len(rest),
        "n_held_out_rows": len(held_out),
        "seed": seed,
        "device": device_name(device),
        "checks": [asdict(check) for check in checks],
    }
    model.save_pretrained(out, max_shard_size="100GB")
    for name in TOKENIZER_FILES:
        if (config_folder / name).is_file():
            shutil.copy(config_folder / name, out)
    for name, rows in (("own_rows.json", own), ("sweep_rows.json", of_sweep)):
        (out / name).write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    (out / STAND_IN_FILE).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return facts


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; one JSON object on standard output, progress on standard error."""
    from transformers.utils import logging

    from trainables.cost.device import count_gpus

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config_folder", type=Path, help="config.json and a tokenizer")
    parser.add_argument("rows", help="as DATA of a sweep: a file, a hub id or 'demo'")
    parser.add_argument("out_folder", type=Path, help="a new folder")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = "cuda" if count_gpus() else "cpu"
    try:
        facts = build(
            given.config_folder, given.rows, given.out_folder, seconds=given.seconds, seed=given.seed, device=device
        )
    except SweepError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps({name: value for name, value in facts.items() if name != "checks"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
