"""A base's tokenizer: opened with its faults said, and texts in pieces to tokens."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.values.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Pieces = tuple[str, ...]
"""A text in pieces: what the model reads and what it learns to write, by turns."""


def open_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a base.

    Raises:
        ConfigError: it cannot be read, has no end token, or more words than the base has embeddings.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each kind of file fails in its own way
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise ConfigError(
            f"BASE_MODEL: the tokenizer in {str(folder)!r} cannot be read{_missing(folder)}: {reason}"
        ) from None
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"BASE_MODEL: the tokenizer in {str(folder)!r} has no end token (eos_token)")
    n_embeddings = embedding_rows(folder)
    if n_embeddings is not None and tokenizer.vocab_size > n_embeddings:
        raise too_many_words(folder, tokenizer.vocab_size, n_embeddings)
    return tokenizer


def _missing(folder: Path) -> str:
    """What a folder with tokenizer.model alone lacks."""
    if (folder / "tokenizer.json").is_file() or not (folder / "tokenizer.model").is_file():
        return ""
    return (
        ": there is a tokenizer.model alone, which needs `pip install sentencepiece protobuf`, or a tokenizer.json "
        "beside it"
    )


def embedding_rows(folder: Path) -> int | None:
    """Rows of the base's embedding by its config.json; None where that does not say."""
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    n_rows = values.get("vocab_size")
    return n_rows if isinstance(n_rows, int) else None


def too_many_words(folder: Path, n_words: int, n_embeddings: int) -> ConfigError:
    """The error for a tokenizer that gives tokens that the base has no embedding for."""
    return ConfigError(
        f"BASE_MODEL: the tokenizer in {str(folder)!r} has {n_words} tokens, but the model's embedding has "
        f"{n_embeddings} rows (vocab_size in config.json); bring the tokenizer that belongs to the model"
    )


@dataclass(frozen=True, slots=True)
class Encoder:
    """Texts to tokens without anything added.

    Attributes:
        reads_special: whether a special token written in a text is that token; otherwise it is plain text.
    """

    tokenizer: "PreTrainedTokenizerBase"
    reads_special: bool

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        ids = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=not self.reads_special)
        return ids["input_ids"]

    def pieces(self, rows: Sequence[Pieces]) -> list[list[list[int]]]:
        """The tokens of every piece of every row.

        What precedes a piece has the tokens that it has alone, as when the model is asked to continue it; after it
        come those of the whole text. Only where a token would straddle the boundary is the piece encoded by itself.
        So SentencePiece puts no space of its own before a piece.
        """
        beginnings: list[str] = []
        for pieces in rows:
            beginnings += ["".join(pieces[: n + 1]) for n in range(len(pieces))]
        encoded = iter(self(beginnings))
        return [self._parts(pieces, [next(encoded) for _ in pieces]) for pieces in rows]

    def _parts(self, pieces: Pieces, wholes: Sequence[list[int]]) -> list[list[int]]:
        ids: list[int] = []
        parts: list[list[int]] = []
        for piece, whole in zip(pieces, wholes, strict=True):
            part = whole[len(ids) :] if whole[: len(ids)] == ids else self([piece])[0]
            parts.append(part)
            ids = ids + part
        return parts


def start_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """What the tokenizer puts before a text of its own accord: the BOS token or nothing."""
    added = tokenizer("")["input_ids"]
    return [tokenizer.bos_token_id] if added and added[0] == tokenizer.bos_token_id else []
