"""From checked rows to splits as tokens in an Arrow cache, and the digest of all that decides them."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.data.chat import ChatRow
from trainables.data.formats import AnyRow
from trainables.data.rows import CheckedRows
from trainables.data.splits import instruction_hash, split_rows
from trainables.data.task_kind import task_kind
from trainables.data.template import ChatTemplate
from trainables.data.tokenizer import Encoder, embedding_rows, open_tokenizer, start_tokens, too_many_words
from trainables.data.tokens import HELD_OUT_TOKENS, Span, TokenRow, nothing_left, too_short, write
from trainables.values.config import PROTOCOL_VERSION, canonical_json
from trainables.values.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CACHE_FORMAT = 4
"""Version of the Arrow cache's columns; a cache of another version is left alone and a new one written."""
TOKENIZER_FILES = (
    *("tokenizer*", "vocab*", "merges.txt"),  # tokenizer.json, tokenizer_config.json, tokenizer.model, ...
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"),
)
"""Patterns of the files that a tokenizer is made of."""
TOKEN_SETTINGS = ("model_type", "eos_token_id")
"""Settings in config.json and generation_config.json that decide the tokenizer's class and the end token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedData:
    """The splits of one data set, tokenized by one tokenizer.

    Attributes:
        folder: the Arrow cache, readable by `load`.
        digest: SHA-256 over the split rows and all that decides their tokens.
        counts: rows read, dropped (by reason), cut, and in each split.
    """

    folder: Path
    digest: str
    counts: Mapping[str, int]


def tokenize(
    checked: CheckedRows,
    tokenizer_folder: Path,
    cache: Path,
    held_out_tokens: int = HELD_OUT_TOKENS,
) -> TokenizedData:
    """Split and tokenize rows; a second call with the same rows uses the cache of the first.

    Args:
        tokenizer_folder: what `AutoTokenizer.from_pretrained` reads.
        cache: folder under which the Arrow cache of each digest lives.
        held_out_tokens: where validation and test rows are cut; HELD_OUT_TOKENS, or as many as the base has positions.
    Raises:
        DataError: too few rows, or the tokenizer's chat template can use none of them.
        ConfigError: see trainables.data.tokenizer.open_tokenizer; or a row has a token without an embedding.
    """
    template = None
    if isinstance(checked.rows[0], ChatRow):
        template = ChatTemplate(open_tokenizer(tokenizer_folder))
    splits = _split(checked.rows, template)
    digest = _digest(splits, tokenizer_folder, held_out_tokens)
    folder = cache / f"tokens-{CACHE_FORMAT}-{digest[:16]}"
    if not folder.exists():
        tokenizer = template.tokenizer if template else open_tokenizer(tokenizer_folder)
        write(_tokenized(splits, tokenizer, template), folder, held_out_tokens)
    _check_embedding(folder, tokenizer_folder)
    counts = {"read": checked.n_read} | {f"dropped: {reason}": n for reason, n in checked.dropped.items()}
    if template is not None:
        counts |= {f"dropped: {reason}": n for reason, n in template.refused.items()} | dict(template.shortened)
        for reason, n in (template.refused + template.shortened).items():
            logger.warning("%d conversations: %s", n, reason)
    counts |= _cut_counts(splits, folder, held_out_tokens)
    return TokenizedData(folder=folder, digest=digest, counts=counts)


def _split(rows: Sequence[AnyRow], template: ChatTemplate | None) -> dict[str, list[AnyRow]]:
    """Deal the rows that can be used.

    Raises:
        DataError: too few rows, or the chat template refuses all.
    """
    if template is None:
        return split_rows(rows)
    try:
        return split_rows(rows, usable=template.accepts)
    except DataError as error:
        refused = ", ".join(f"{n} with {reason}" for reason, n in template.refused.most_common())
        if template.refused.total() == len(rows):
            raise DataError(f"DATA: none of the {len(rows)} conversations can be used: {refused}") from None
        raise DataError(f"{error}; not usable: {refused}" if refused else str(error)) from None


def _digest(splits: Mapping[str, Sequence[AnyRow]], tokenizer_folder: Path, held_out_tokens: int) -> str:
    """See TokenizedData.digest."""
    hasher = hashlib.sha256(f"protocol {PROTOCOL_VERSION}, held out {held_out_tokens}\n".encode())
    for name, rows in splits.items():
        for row in rows:
            hasher.update(canonical_json([name, *asdict(row).values()]).encode())
    paths: set[Path] = set()
    for pattern in TOKENIZER_FILES:
        paths |= {path for path in tokenizer_folder.glob(pattern) if path.is_file()}
    for path in sorted(paths):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        hasher.update(canonical_json([path.name, content]).encode())
    for name in ("config.json", "generation_config.json"):
        path = tokenizer_folder / name
        values = _values(path)
        hasher.update(canonical_json([name, [values.get(setting) for setting in TOKEN_SETTINGS]]).encode())
    return hasher.hexdigest()


def _values(path: Path) -> Mapping[str, Any]:
    """A JSON object from a file; empty where there is no file.

    Raises:
        ConfigError: it holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ConfigError(f"BASE_MODEL: {str(path)!r} is not a JSON object; bring the file again")
    return values


def _tokenized(
    splits: Mapping[str, Sequence[AnyRow]], tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate | None
) -> dict[str, list[TokenRow]]:
    """Tokens of the rows of each split, uncut."""
    # A row may quote "<|endoftext|>": as text it must not end the row.
    encoder = Encoder(tokenizer, reads_special=template is not None)
    tokenized: dict[str, list[TokenRow]] = {}
    for name, rows in splits.items():
        if template is None:
            start, end = start_tokens(tokenizer), [tokenizer.eos_token_id]
            pairs = encoder.pieces([(row.prompt, row.response) for row in rows])
            parts = [[start + prompt, response + end] for prompt, response in pairs]
        else:
            parts = encoder.pieces([template.pieces(row) for row in rows])
        groups: dict[str, int] = {}
        tokenized[name] = []
        for row, pieces in zip(rows, parts, strict=True):
            group = groups.setdefault(instruction_hash(row), len(groups))
            tokenized[name].append(_token_row(row, pieces, group))
    return tokenized


def _check_embedding(folder: Path, tokenizer_folder: Path) -> None:
    """Hold the tokens of a cache, which bases with one tokenizer share, against a base's own embedding.

    Raises:
        ConfigError: a row has a token that the base has no embedding for.
    """
    from datasets import load_from_disk

    n_embeddings = embedding_rows(tokenizer_folder)
    largest = max(map(max, load_from_disk(str(folder))["input_ids"]))
    if n_embeddings is not None and largest >= n_embeddings:
        raise too_many_words(tokenizer_folder, len(open_tokenizer(tokenizer_folder)), n_embeddings)


def _token_row(row: AnyRow, parts: Sequence[Sequence[int]], group: int) -> TokenRow:
    """A row of prompts and responses by turns."""
    later: list[Span] = []
    ids = [*parts[0]]
    for n, part in enumerate(parts[1:], start=1):
        if n % 2 == 0 and part:
            later.append((len(ids), len(ids) + len(part)))
        ids += part
    return TokenRow(
        input_ids=tuple(ids),
        n_prompt_tokens=len(parts[0]),
        later_prompts=tuple(later),
        kind=task_kind(row.instruction, row.input),
        group=group,
    )


def _cut_counts(dealt: Mapping[str, Sequence[AnyRow]], folder: Path, held_out_tokens: int) -> dict[str, int]:
    """Rows in each split of a cache, and how many of those dealt to it were cut or dropped.

    Raises:
        DataError: a split has no row left.
    """
    from datasets import load_from_disk

    cache = load_from_disk(str(folder))
    n_left = Counter(cache["split"])
    n_cut, n_dropped = sum(cache["is_cut"]), sum(len(rows) - n_left[name] for name, rows in dealt.items())
    for name in dealt:
        if not n_left[name]:
            raise DataError(nothing_left(f"no {name} row", held_out_tokens))
    cuts = {
        f"longer than {held_out_tokens} tokens (validation, test)": n_cut + n_dropped,
        f"dropped: {too_short(held_out_tokens)} (validation, test)": n_dropped,
    }
    return {what: n for what, n in cuts.items() if n} | {name: n_left[name] for name in dealt}
