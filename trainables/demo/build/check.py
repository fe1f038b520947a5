"""Does the demo show what it should? `python -m trainables.demo.build.check` prints the table in 1 to 3 minutes.

Held-out response loss in nats a token, untuned and after 60 LoRA steps, by precision, rank and seed. It stands alone on
purpose: it is the yardstick of the demo's files, not of the project's training code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Literal

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trainables.demo import END, FOLDER, MAX_LENGTH_TOKENS, ROWS_FILE
from trainables.demo.build.rows import Row, framed, prompt

Precision = Literal["16bit", "nf4"]
SPLIT_SEED = 0
N_HELD_OUT_ROWS = 128
N_TRAINING_ROWS = 1_000
N_STEPS = 60
BATCH_SIZE = 4
LEARNING_RATE = 2e-4
IGNORED = -100  # the label that transformers leaves out of the loss


def shipped_rows() -> list[Row]:
    """The rows of alpaca_demo.json."""
    return json.loads(ROWS_FILE.read_text(encoding="utf-8"))


def _in_hash_order(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: hashlib.sha256(f"{SPLIT_SEED}:{row['instruction']}".encode()).digest())


def held_out_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows whose instructions hash lowest."""
    return _in_hash_order(rows)[:N_HELD_OUT_ROWS]


def training_rows(rows: Sequence[Row]) -> list[Row]:
    """The next rows in hash order that share no instruction with the held-out ones."""
    held_out = {row["instruction"] for row in held_out_rows(rows)}
    return [row for row in _in_hash_order(rows) if row["instruction"] not in held_out][:N_TRAINING_ROWS]


def encode(tokenizer: PreTrainedTokenizerBase, row: Row) -> tuple[list[int], list[int]]:
    """Token ids and labels of one row: the response and the end token are supervised; a long prompt loses its front."""
    asked = tokenizer(prompt(row))["input_ids"]
    answer = [*tokenizer(row["output"])["input_ids"], tokenizer.eos_token_id]
    asked = asked[max(0, len(asked) + len(answer) - MAX_LENGTH_TOKENS) :]
    return asked + answer, [IGNORED] * len(asked) + answer


def padded(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> dict[str, Tensor]:
    """One right-padded batch: input_ids, attention_mask, labels, each (n_rows, longest)."""
    pairs = [encode(tokenizer, row) for row in rows]
    longest = max(len(ids) for ids, _ in pairs)
    return {
        "input_ids": torch.tensor([ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids, _ in pairs]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in pairs]),
        "labels": torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in pairs]),
    }


@torch.no_grad()
def response_loss(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> float:
    """Mean cross entropy over all response and end tokens of the rows, in nats."""
    model.eval()
    total, n_tokens = 0.0, 0
    for start in range(0, len(rows), 32):
        batch = padded(tokenizer, rows[start : start + 32])
        n = int((batch["labels"][:, 1:] != IGNORED).sum())
        total += model(**batch).loss.item() * n
        n_tokens += n
    return total / n_tokens


def load_tokenizer(folder: Path = FOLDER) -> PreTrainedTokenizerBase:
    """The shipped tokenizer, the way everybody loads it."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_base(precision: Precision, folder: Path = FOLDER) -> PreTrainedModel:
    """The shipped model, in float32 or with its blocks in NF4 (block 64, double quantization, float32 compute)."""
    if precision == "16bit":
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=quantization,
        device_map={"": "cpu"},
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    for module in model.modules():  # else the first eval() forward repacks weights and the next step raises
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def tuned_loss(precision: Precision, rank: int, alpha: int, seed: int, tokenizer: PreTrainedTokenizerBase) -> float:
    """Held-out loss after N_STEPS LoRA steps on attn.c_attn; data, A and dropout depend on the seed alone."""
    rows = shipped_rows()
    train, held_out = training_rows(rows), held_out_rows(rows)
    base = load_base(precision)
    torch.manual_seed(seed)
    model = get_peft_model(
        base,
        LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=0.05,
            target_modules=["attn.c_attn"],
            task_type="CAUSAL_LM",
            fan_in_fan_out=precision == "16bit",  # bitsandbytes transposes Conv1D into Linear4bit
        ),
    )
    adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(adapter, lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=0.0)
    order = list(range(len(train)))
    Random(seed).shuffle(order)
    torch.manual_seed(seed)
    model.train()
    for step in range(N_STEPS):
        picked = [train[i] for i in order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]]
        loss = model(**padded(tokenizer, picked)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapter, 1.0)
        optimizer.step()
    return response_loss(model, tokenizer, held_out)


def print_lengths(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> None:
    """Print how long the framed rows are, in tokens."""
    lengths = sorted(len(tokenizer(framed(row).removesuffix(END))["input_ids"]) + 1 for row in rows)
    marks = {f"p{p}": lengths[min(len(lengths) - 1, len(lengths) * p // 100)] for p in (0, 10, 50, 90, 99, 100)}
    too_long = sum(length > MAX_LENGTH_TOKENS for length in lengths)
    print(f"{len(rows)} rows, tokens {marks}, {too_long} over {MAX_LENGTH_TOKENS}")


def main() -> None:
    """Print untuned losses, then one line per rank, alpha and precision with every seed's loss."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--seeds", type=int, default=4, help="seeds 0 .. SEEDS - 1")
    parser.add_argument("--alpha", type=int, help="fixed alpha (default: 2 x rank)")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer, seeds = load_tokenizer(), range(arguments.seeds)
    print_lengths(tokenizer, shipped_rows())
    untuned = {p: response_loss(load_base(p), tokenizer, held_out_rows(shipped_rows())) for p in ("16bit", "nf4")}
    print(f"uniform {math.log(len(tokenizer)):.4f}  untuned 16bit {untuned['16bit']:.4f}  nf4 {untuned['nf4']:.4f}")
    print(f"{'rank':>4} {'alpha':>5} {'':>7} {'mean':>7} {'sd':>6} {'change':>7}   seeds 0 .. {arguments.seeds - 1}")
    for rank in arguments.ranks:
        alpha = arguments.alpha or 2 * rank
        losses = {p: [tuned_loss(p, rank, alpha, seed, tokenizer) for seed in seeds] for p in ("16bit", "nf4")}
        losses["nf4-16"] = [nf4 - full for full, nf4 in zip(losses["16bit"], losses["nf4"], strict=True)]
        for name, values in losses.items():
            mean, spread = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
            change = f"{mean / untuned[name] - 1:+7.1%}" if name in untuned else " " * 7
            listed = " ".join(f"{value:.4f}" for value in values)
            print(f"{rank:>4} {alpha:>5g} {name:>7} {mean:7.4f} {spread:6.4f} {change}   {listed}", flush=True)


if __name__ == "__main__":
    main()
