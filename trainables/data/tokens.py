"""From checked rows to tokens in an Arrow cache, and from tokens to padded batches."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.data.alpaca import CheckedRows, Row
from trainables.data.splits import SPLIT_ROWS, split_rows
from trainables.data.task_kind import task_kind
from trainables.values.config import PROTOCOL_VERSION, canonical_json
from trainables.values.errors import ConfigError

if TYPE_CHECKING:
    import torch

CACHE_FORMAT = 2
"""Version of the Arrow cache's columns; a cache of another version is left alone and a new one written."""
TOKENIZER_FILES = (
    *("tokenizer*", "vocab*", "merges.txt"),  # tokenizer.json, tokenizer_config.json, tokenizer.model, ...
    *("special_tokens_map.json", "added_tokens.json"),
)
"""Patterns of the files that a tokenizer is made of."""
TOKEN_SETTINGS = ("model_type", "eos_token_id")
"""Settings in config.json and generation_config.json that decide the tokenizer's class and the end token."""
IGNORE = -100
"""Label of positions that carry no loss (PyTorch's convention)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One row as tokens: prompt, response, end token.

    Attributes:
        input_ids: all tokens.
        n_prompt_tokens: how many of them are the prompt, which carries no loss.
        kind: kind of task, see trainables.data.task_kind; "" in caches of format 1.
    """

    input_ids: tuple[int, ...]
    n_prompt_tokens: int
    kind: str = ""

    def last(self, n_tokens: int) -> "TokenRow":
        """At most the last `n_tokens`: the prompt loses its front first, the end token stays."""
        cut = max(0, len(self.input_ids) - n_tokens)
        n_prompt_tokens = max(0, self.n_prompt_tokens - cut)
        return replace(self, input_ids=self.input_ids[cut:], n_prompt_tokens=n_prompt_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedData:
    """The splits of one data set, tokenized by one tokenizer.

    Attributes:
        folder: the Arrow cache, readable by `load`.
        digest: SHA-256 over the split rows and all that decides their tokens.
        counts: rows read, dropped (by reason) and in each split.
    """

    folder: Path
    digest: str
    counts: Mapping[str, int]


def tokenize(checked: CheckedRows, tokenizer_folder: Path, cache: Path) -> TokenizedData:
    """Split and tokenize rows; a second call with the same rows uses the cache of the first.

    Args:
        tokenizer_folder: what `AutoTokenizer.from_pretrained` reads.
        cache: folder under which the Arrow cache of each digest lives.
    Raises:
        DataError: too few rows.
        ConfigError: the tokenizer has no end token.
    """
    splits = split_rows(checked.rows)
    digest = _digest(splits, tokenizer_folder)
    counts = {"read": checked.n_read} | {f"dropped: {reason}": n for reason, n in checked.dropped.items()}
    counts |= {name: len(rows) for name, rows in splits.items()}
    folder = cache / f"tokens-{CACHE_FORMAT}-{digest[:16]}"
    if not folder.exists():
        _write_cache(splits, tokenizer_folder, folder)
    return TokenizedData(folder=folder, digest=digest, counts=counts)


def _digest(splits: Mapping[str, Sequence[Row]], tokenizer_folder: Path) -> str:
    """See TokenizedData.digest."""
    hasher = hashlib.sha256(f"protocol {PROTOCOL_VERSION}\n".encode())
    for name, rows in splits.items():
        for row in rows:
            hasher.update(canonical_json([name, row.instruction, row.input, row.output]).encode())
    paths: set[Path] = set()
    for pattern in TOKENIZER_FILES:
        paths |= {path for path in tokenizer_folder.glob(pattern) if path.is_file()}
    for path in sorted(paths):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        hasher.update(canonical_json([path.name, content]).encode())
    for name in ("config.json", "generation_config.json"):
        path = tokenizer_folder / name
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        hasher.update(canonical_json([name, [values.get(setting) for setting in TOKEN_SETTINGS]]).encode())
    return hasher.hexdigest()


def _write_cache(splits: Mapping[str, Sequence[Row]], tokenizer_folder: Path, folder: Path) -> None:
    """Tokenize and write the Arrow cache; whole, or not at all."""
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"BASE_MODEL: the tokenizer in {str(tokenizer_folder)!r} has no end token (eos_token)")

    def encode(texts: list[str]) -> list[list[int]]:
        # A row may quote "<|endoftext|>": as text it must not end the row.
        return tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    table: dict[str, list[Any]] = {"split": [], "input_ids": [], "n_prompt_tokens": [], "kind": []}
    for name, rows in splits.items():
        prompts = encode([row.prompt for row in rows])
        responses = encode([row.output for row in rows])
        table["split"] += [name] * len(rows)
        table["kind"] += [task_kind(row.instruction, row.input) for row in rows]
        table["n_prompt_tokens"] += [len(prompt) for prompt in prompts]
        table["input_ids"] += [p + r + [tokenizer.eos_token_id] for p, r in zip(prompts, responses, strict=True)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=".tokens-", dir=folder.parent))
    Dataset.from_dict(table).save_to_disk(str(scratch / "arrow"))
    try:
        (scratch / "arrow").rename(folder)
    except OSError:  # another process was faster, with the same content
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load(folder: str | Path) -> dict[str, list[TokenRow]]:
    """Read the splits of an Arrow cache written by `tokenize`."""
    from datasets import load_from_disk

    splits: dict[str, list[TokenRow]] = {name: [] for name in SPLIT_ROWS}
    for record in load_from_disk(str(folder)):
        row = TokenRow(
            input_ids=tuple(record["input_ids"]),
            n_prompt_tokens=record["n_prompt_tokens"],
            kind=record.get("kind", ""),  # a cache of format 1 has none
        )
        splits[record["split"]].append(row)
    return splits


def n_longer(rows: Sequence[TokenRow], n_tokens: int) -> int:
    """Number of rows that a limit of `n_tokens` shortens."""
    return sum(len(row.input_ids) > n_tokens for row in rows)


def pad(
    rows: Sequence[TokenRow], *, max_length_tokens: int, pad_id: int, multiple: int = 1
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Right-pad rows into one batch; causal attention needs no mask then.

    Args:
        max_length_tokens: rows keep their last so many tokens.
        multiple: the longest row's length is rounded up to it, but not beyond max_length_tokens.
    Returns:
        input_ids and labels, both (len(rows), length), int64; labels are IGNORE on prompt and padding.
    """
    import torch

    rows = [row.last(max_length_tokens) for row in rows]
    longest = max(len(row.input_ids) for row in rows)
    longest = min(-(-longest // multiple) * multiple, max_length_tokens)
    input_ids = np.full((len(rows), longest), pad_id)
    labels = np.full((len(rows), longest), IGNORE)
    for i, row in enumerate(rows):
        n_tokens, answer = len(row.input_ids), slice(row.n_prompt_tokens, len(row.input_ids))
        input_ids[i, :n_tokens] = row.input_ids
        labels[i, answer] = input_ids[i, answer]
    return torch.from_numpy(input_ids), torch.from_numpy(labels)
