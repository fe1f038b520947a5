"""Rebuild the demo from nothing: `python -m trainables.demo.build` (`make demo`), a few minutes on two CPU cores.

Rows, tokenizer and pretraining follow from the seeds here; on one machine with one torch the files come out byte for
byte the same, elsewhere the weights differ by rounding. The first losses are recorded so that a test can redo them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trainables.demo import BUILD_RECORD_FILE, END, FOLDER, ROWS_FILE
from trainables.demo.build.check import held_out_rows, load_base, load_tokenizer, print_lengths, response_loss
from trainables.demo.build.corpus import documents
from trainables.demo.build.rows import Row, alpaca_rows, framed

VOCABULARY_SIZE = 1_024
N_POSITIONS = 256
BATCH_SIZE = 8  # windows of N_POSITIONS tokens
N_STEPS = 2_000
WARMUP_STEPS = 150
PEAK_LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.01
PRETRAINING_SEED = 1
N_THREADS = 2
N_RECORDED_STEPS = 50
N_TOKENIZER_DOCUMENTS = 5_000


def write_rows(path: Path = ROWS_FILE) -> list[Row]:
    """Write the rows as one JSON list, as Alpaca's file is, and return them."""
    rows = alpaca_rows()
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return rows


def write_tokenizer(rows: list[Row], folder: Path = FOLDER) -> None:
    """Train a byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909) on rows and corpus; any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(END, special=True, normalized=False)],
        show_progress=False,
    )
    texts = [*map(framed, rows), *islice(documents(), N_TOKENIZER_DOCUMENTS)]
    tokenizer.train_from_iterator([text.removesuffix(END) for text in texts], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        bos_token=END,
        unk_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=N_POSITIONS,
        model_input_names=["input_ids", "attention_mask"],  # GPT-2 would add token_type_ids to the embeddings
    ).save_pretrained(folder)


def windows(tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Endless windows of N_POSITIONS tokens; each begins with a document, as prompts do later."""
    stream = documents()
    while True:
        batch = [text.removesuffix(END) for text in islice(stream, 1_000)]
        ids: list[int] = []
        for encoded in tokenizer(batch)["input_ids"]:
            ids += [*encoded, tokenizer.eos_token_id]
            if len(ids) >= N_POSITIONS:
                yield ids[:N_POSITIONS]
                ids = []


def pretraining_losses(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[float]:
    """Train the model in place for N_STEPS; yields each step's mean loss in nats a token, over all tokens."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY
    )
    source = windows(tokenizer)
    model.train()
    for step in range(N_STEPS):
        ids = torch.tensor(list(islice(source, BATCH_SIZE)))  # (BATCH_SIZE, N_POSITIONS)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        loss: Tensor = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


def learning_rate(step: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth of the peak."""
    if step < WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / (N_STEPS - WARMUP_STEPS)
    return PEAK_LEARNING_RATE * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def untrained_model(tokenizer: PreTrainedTokenizerBase) -> GPT2LMHeadModel:
    """The seeded start of pretraining: 4 layers, 128 wide, tied head, no dropout."""
    torch.manual_seed(PRETRAINING_SEED)
    end = tokenizer.eos_token_id
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=N_POSITIONS,
            n_embd=128,
            n_layer=4,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def write_model(model: GPT2LMHeadModel, folder: Path = FOLDER) -> None:
    """Save weights as float16, half the size; config.json says float32, so that they load as the rounded float32."""
    model.half().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def build(folder: Path) -> None:
    """Make every file of the demo in an empty folder, and print what came out."""
    began = time.monotonic()
    rows = write_rows(folder / ROWS_FILE.name)
    write_tokenizer(rows, folder)
    tokenizer = load_tokenizer(folder)
    print_lengths(tokenizer, rows)
    model = untrained_model(tokenizer)
    losses = []
    for step, loss in enumerate(pretraining_losses(model, tokenizer)):
        losses.append(loss)
        if step % 100 == 0 or step == N_STEPS - 1:
            print(f"step {step:5d}  loss {loss:.3f}  {time.monotonic() - began:.0f} s", flush=True)
    write_model(model, folder)
    untuned = response_loss(load_base("16bit", folder), tokenizer, held_out_rows(rows))
    record = {
        "first_losses_nats": [round(loss, 6) for loss in losses[:N_RECORDED_STEPS]],
        "last_loss_nats": round(sum(losses[-50:]) / 50, 6),
        "held_out_loss_nats": round(untuned, 6),
        "torch": torch.__version__,
    }
    (folder / BUILD_RECORD_FILE.name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"untuned held-out loss {untuned:.3f} nats; uniform {math.log(len(tokenizer)):.3f}")
    print(f"built in {time.monotonic() - began:.0f} s")


def main() -> None:
    """Rebuild beside the shipped files and replace them only when everything is there."""
    torch.set_num_threads(N_THREADS)
    with TemporaryDirectory() as made:
        build(Path(made))
        for path in sorted(Path(made).iterdir()):
            copyfile(path, FOLDER / path.name)
