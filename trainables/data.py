"""Alpaca rows -> checked rows -> splits -> tokens in an Arrow cache -> padded batches.

Rows come as `instruction`, `input` (may be empty or absent) and `output`. A bad row is counted
by reason and dropped; more than 5 % of them stop the sweep before any GPU is used.
"""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import TYPE_CHECKING, Any

from trainables import demo, hub
from trainables.config import PROTOCOL_VERSION, canonical_json
from trainables.errors import DataError
from trainables.task_kind import task_kind

if TYPE_CHECKING:
    import torch

SPLIT_ROWS = {"search": 128, "report": 256, "train": 1000}
"""Rows of each split, filled in this order (measurement protocol 1)."""
SPLIT_SEED = 0
MAX_BAD_SHARE = 0.05
CACHE_FORMAT = 2
"""Version of the Arrow cache's columns; a cache of another version is left alone and a new one written."""
IGNORE = -100
"""Label of positions that carry no loss (PyTorch's convention)."""
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""Half a surrogate pair: JSON can escape one, no tokenizer takes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One checked Alpaca row; `input` is "" where there is none."""

    instruction: str
    input: str
    output: str

    @property
    def prompt(self) -> str:
        """What the model reads before it answers."""
        context = f"### Input:\n{self.input}\n\n" if self.input else ""
        return f"### Instruction:\n{self.instruction}\n\n{context}### Response:\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRows:
    """Rows that can be used, and how many could not, by reason."""

    rows: tuple[Row, ...]
    dropped: Mapping[str, int]

    @property
    def n_read(self) -> int:
        return len(self.rows) + sum(self.dropped.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One row as tokens: prompt, response, end token.

    Attributes:
        input_ids: all tokens.
        n_prompt_tokens: how many of them are the prompt, which carries no loss.
        kind: kind of task, see trainables.task_kind; "" where it is not known.
    """

    input_ids: tuple[int, ...]
    n_prompt_tokens: int
    kind: str = ""

    def last(self, n_tokens: int) -> "TokenRow":
        """Keep the last `n_tokens`: the prompt loses its front first, the end token is kept."""
        cut = max(0, len(self.input_ids) - n_tokens)
        n_prompt_tokens = max(0, self.n_prompt_tokens - cut)
        return replace(self, input_ids=self.input_ids[cut:], n_prompt_tokens=n_prompt_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedData:
    """The splits of one data set under one tokenizer.

    Attributes:
        folder: the Arrow cache, readable by `load`.
        digest: SHA-256 over the split rows and the tokenizer.
        counts: rows read, dropped (by reason) and in each split.
    """

    folder: Path
    digest: str
    counts: Mapping[str, int]


def read_rows(source: str) -> CheckedRows:
    """Read and check rows from "demo", a local .json / .jsonl / .parquet file or a hub id.

    Raises:
        DataError: the file is missing, empty, truncated or not UTF-8, or more than 5 % of the rows are bad.
        Unreachable: the hub does not answer and nothing is cached.
    """
    path = demo.ROWS_FILE if source == "demo" else Path(source).expanduser()
    is_file = path.suffix in (".json", ".jsonl", ".parquet") or path.exists()
    return check_rows(_read_file(path) if is_file else hub.fetch_rows(source), source)


def _read_file(path: Path) -> list[Any]:
    """All records of a local file; JSON is read strictly, since `datasets` fails on mixed types."""
    if not path.is_file():
        raise DataError(f"DATA: no file {str(path)!r}")
    if path.stat().st_size == 0:
        raise DataError(f"DATA: {path} is empty")
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a byte order mark first
    except UnicodeDecodeError as error:
        raise DataError(f"DATA: {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    if path.suffix == ".jsonl":  # not splitlines: text may hold other line ends, as U+2028
        lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
        return [_parse_json(line, path, first_line=n) for n, line in lines]
    records = _parse_json(text, path)
    if not isinstance(records, list):
        raise DataError(f"DATA: {path} must hold a list of rows, got {type(records).__name__}")
    return records


def _parse_json(text: str, path: Path, first_line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"DATA: {path} is not whole JSON (line {line}: {error.msg}); truncated?") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
        raise DataError(f"DATA: {path} is not rows as JSON (from line {first_line}: {error})") from None


def _read_parquet(path: Path) -> list[Any]:
    from datasets import Dataset

    try:
        with TemporaryDirectory(prefix="qlora-sweep-") as cache:
            return Dataset.from_parquet(str(path), cache_dir=cache).to_list()
    except Exception as error:  # datasets wraps every cause
        raise DataError(f"DATA: {path} is not a readable Parquet file ({type(error).__name__}); truncated?") from None


def check_rows(records: Iterable[Any], source: str) -> CheckedRows:
    """Keep the good rows of `records`, count the bad ones by reason.

    Raises:
        DataError: more than 5 % are bad, or there are none at all.
    """
    rows: list[Row] = []
    dropped: Counter[str] = Counter()
    for record in records:
        reason = _fault(record)
        if reason:
            dropped[reason] += 1
        else:
            rows.append(
                Row(instruction=record["instruction"], input=record.get("input") or "", output=record["output"])
            )
    n_read = len(rows) + dropped.total()
    if not n_read:
        raise DataError(f"DATA: {source} holds no rows")
    if dropped.total() > MAX_BAD_SHARE * n_read:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in dropped.most_common())
        raise DataError(f"DATA: {dropped.total()} of {n_read} rows of {source} are bad (at most 5 % may be): {reasons}")
    return CheckedRows(rows=tuple(rows), dropped=dict(dropped))


def _fault(record: Any) -> str | None:
    """Why a record is no usable row, or None."""
    if not isinstance(record, Mapping):
        return "no fields"
    for name in ("instruction", "output"):
        value = record.get(name)
        if name not in record:
            return f"{name} missing"
        if value is None:
            return f"{name} null"
        if not isinstance(value, str):
            return f"{name} not text"
        if not value.strip():
            return f"{name} empty"
    if not isinstance(record.get("input"), str | None):
        return "input not text"
    texts = (record["instruction"], record.get("input") or "", record["output"])
    return "broken Unicode" if any(map(HALF_CHARACTER.search, texts)) else None


def split_rows(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Deal rows to the splits by the seeded hash of their instruction, lowest first.

    Rows of equal instruction never straddle two splits: what is left of such a group when a
    split is full is not used.

    Raises:
        DataError: fewer rows than the splits need.
    """

    def rank(row: Row) -> str:
        return hashlib.sha256(f"{SPLIT_SEED}\n{row.instruction}".encode()).hexdigest()

    groups = (list(group) for _, group in groupby(sorted(rows, key=rank), key=rank))
    splits: dict[str, list[Row]] = {name: [] for name in SPLIT_ROWS}
    names = iter(SPLIT_ROWS)
    name = next(names)
    for group in groups:
        splits[name].extend(group[: SPLIT_ROWS[name] - len(splits[name])])
        if len(splits[name]) == SPLIT_ROWS[name]:
            name = next(names, "")
            if not name:
                return splits
    have = ", ".join(f"{len(part)} {name}" for name, part in splits.items())
    raise DataError(
        f"DATA: too few rows: the splits need {sum(SPLIT_ROWS.values())} with distinct instructions, "
        f"{len(rows)} usable rows fill only {have}"
    )


def tokenize(checked: CheckedRows, tokenizer_folder: Path, cache: Path) -> TokenizedData:
    """Split and tokenize rows once; a second call with the same rows finds the cache.

    Args:
        tokenizer_folder: what `AutoTokenizer.from_pretrained` reads.
        cache: folder under which the Arrow cache of each digest lives.
    Raises:
        DataError: too few rows.
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
    hasher = hashlib.sha256(f"protocol {PROTOCOL_VERSION}\n".encode())
    for name, rows in splits.items():
        for row in rows:
            hasher.update(canonical_json([name, row.instruction, row.input, row.output]).encode())
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        if (tokenizer_folder / name).is_file():
            hasher.update((tokenizer_folder / name).read_bytes())
    return hasher.hexdigest()


def _write_cache(splits: Mapping[str, Sequence[Row]], tokenizer_folder: Path, folder: Path) -> None:
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)

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
    """How many rows lose the front of their prompt to a limit of `n_tokens`."""
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
    input_ids = torch.full((len(rows), longest), pad_id)
    labels = torch.full((len(rows), longest), IGNORE)
    for i, row in enumerate(rows):
        ids = torch.tensor(row.input_ids)
        input_ids[i, : len(ids)] = ids
        labels[i, row.n_prompt_tokens : len(ids)] = ids[row.n_prompt_tokens :]
    return input_ids, labels
