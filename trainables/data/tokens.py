"""Rows as tokens: cut, cached in Arrow files, padded to batches."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.data.splits import SPLIT_ROWS
from trainables.values.errors import DataError

if TYPE_CHECKING:
    import torch

HELD_OUT_TOKENS = 512
"""Where validation and test rows are cut (measurement protocol 2)."""
LEAST_RESPONSE_TOKENS = 16
"""A row that a cut leaves fewer of is dropped."""
COLUMNS = ("input_ids", "n_prompt_tokens", "later_prompts", "kind", "group")
"""Fields of a TokenRow that a cache keeps."""
IGNORE = -100
"""Label of positions that carry no loss (PyTorch's convention)."""

Span = tuple[int, int]
"""Index of a first token, and of the one after the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One row as tokens: prompt, response, end token; in a conversation further prompts and responses.

    Attributes:
        input_ids: all tokens.
        n_prompt_tokens: how many of them are the prompt, which carries no loss.
        later_prompts: further tokens without loss, what stands between two responses of a conversation.
        kind: kind of task, see trainables.data.task_kind; "" in caches of format 1.
        group: number of its group in its split: rows of equal instruction have the same.
    """

    input_ids: tuple[int, ...]
    n_prompt_tokens: int
    later_prompts: tuple[Span, ...] = ()
    kind: str = ""
    group: int = 0

    @property
    def responses(self) -> tuple[Span, ...]:
        """The tokens that carry loss."""
        starts = (self.n_prompt_tokens, *(stop for _, stop in self.later_prompts))
        stops = (*(start for start, _ in self.later_prompts), len(self.input_ids))
        return tuple(zip(starts, stops, strict=True))

    @property
    def response_tokens(self) -> list[int]:
        """The tokens that carry loss, one response after the other."""
        tokens: list[int] = []
        for start, stop in self.responses:
            tokens += self.input_ids[start:stop]
        return tokens

    @property
    def predicted_tokens(self) -> list[int]:
        """Those of them that a model can predict: all but a row's first token."""
        return self.response_tokens[self.n_prompt_tokens == 0 :]

    def first(self, n_tokens: int) -> "TokenRow":
        """At most the first `n_tokens`: the last response loses its end first, and with it the end token.

        A prompt that no response follows any more is left out, unless it is the row's first.
        """
        if len(self.input_ids) <= n_tokens:
            return self
        stop = n_tokens
        later = [span for span in self.later_prompts if span[0] < n_tokens]
        if later and later[-1][1] >= n_tokens:
            stop = later.pop()[0]
        return replace(
            self,
            input_ids=self.input_ids[:stop],
            n_prompt_tokens=min(self.n_prompt_tokens, stop),
            later_prompts=tuple(later),
        )


def write(splits: Mapping[str, Sequence[TokenRow]], folder: Path, held_out_tokens: int) -> None:
    """Write an Arrow cache, with validation and test rows cut; whole, or not at all."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    table: dict[str, list[Any]] = {"split": [], "is_cut": [], **{name: [] for name in COLUMNS}}
    for name, rows in splits.items():
        for row in rows:
            short = row if name == "train" else fitted_row(row, held_out_tokens)
            if short is None:
                continue
            table["split"].append(name)
            table["is_cut"].append(short is not row)
            for column in COLUMNS:
                table[column].append(getattr(short, column))
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


def too_short(n_tokens: int) -> str:
    return f"under {LEAST_RESPONSE_TOKENS} response tokens left of {n_tokens}"


def nothing_left(what: str, n_tokens: int) -> str:
    return (
        f"DATA: {what} keeps {LEAST_RESPONSE_TOKENS} tokens of its response when cut at {n_tokens}: prompts are never "
        "cut; give shorter prompts or a larger max_length_tokens"
    )


def load(folder: str | Path) -> dict[str, list[TokenRow]]:
    """Read the splits of an Arrow cache written by `tokenize`; validation and test rows are cut, train rows are not."""
    from datasets import load_from_disk

    splits: dict[str, list[TokenRow]] = {name: [] for name in SPLIT_ROWS}
    for record in load_from_disk(str(folder)):
        row = TokenRow(
            input_ids=tuple(record["input_ids"]),
            n_prompt_tokens=record["n_prompt_tokens"],
            later_prompts=tuple((start, stop) for start, stop in record.get("later_prompts") or ()),
            kind=record.get("kind", ""),  # a cache of format 1 has none
            group=record.get("group", len(splits[record["split"]])),  # before format 4: each row is one
        )
        splits[record["split"]].append(row)
    return splits


def fitted_row(row: TokenRow, n_tokens: int) -> TokenRow | None:
    """A row of at most `n_tokens`, which loses the end of its response; None where too little of that is left."""
    if len(row.input_ids) <= n_tokens:
        return row
    short = row.first(n_tokens)
    return short if len(short.response_tokens) >= LEAST_RESPONSE_TOKENS else None


def fitted(rows: Sequence[TokenRow], n_tokens: int) -> list[TokenRow]:
    """Rows of at most `n_tokens` each, see `fitted_row`.

    Raises:
        DataError: none is left.
    """
    short = [fit for row in rows if (fit := fitted_row(row, n_tokens)) is not None]
    if not short:
        raise DataError(nothing_left(f"none of {len(rows)} rows", n_tokens))
    return short


def cut_counts(rows: Sequence[TokenRow], n_tokens: int) -> dict[str, int]:
    """How many training rows a limit cuts, and how many of these it drops.

    Raises:
        DataError: it drops all.
    """
    n_longer = sum(len(row.input_ids) > n_tokens for row in rows)
    n_dropped = len(rows) - len(fitted(rows, n_tokens))
    return {f"longer than {n_tokens} tokens": n_longer, f"dropped: {too_short(n_tokens)}": n_dropped}


def pad(
    rows: Sequence[TokenRow], *, max_length_tokens: int, pad_id: int, multiple: int = 1
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Right-pad rows into one batch; causal attention needs no mask then.

    Args:
        max_length_tokens: rows keep their first so many tokens; see `fitted` for those that this leaves too little of.
        pad_id: is never supervised, even where it is the end token, too.
        multiple: the longest row's length is rounded up to it, but not beyond max_length_tokens.
    Returns:
        input_ids and labels, both (len(rows), length), int64; labels are IGNORE on prompts and padding.
    """
    import torch

    rows = [row.first(max_length_tokens) for row in rows]
    longest = max(len(row.input_ids) for row in rows)
    longest = min(-(-longest // multiple) * multiple, max_length_tokens)
    input_ids = np.full((len(rows), longest), pad_id)
    labels = np.full((len(rows), longest), IGNORE)
    for i, row in enumerate(rows):
        input_ids[i, : len(row.input_ids)] = row.input_ids
        for start, stop in row.responses:
            labels[i, start:stop] = row.input_ids[start:stop]
    return torch.from_numpy(input_ids), torch.from_numpy(labels)
