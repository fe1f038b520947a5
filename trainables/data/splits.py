"""Deal checked rows to the validation, test and train splits."""

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Protocol, TypeVar

from trainables.values.errors import DataError

SPLIT_ROWS = {"validation": 128, "test": 256, "train": 1000}
"""Rows of each split, filled in this order (measurement protocol 2)."""
LEAST_ROWS = {"validation": 32, "test": 64, "train": 200}
"""Rows of each split that smaller data must still fill."""
SPLIT_SEED = 0


class HasInstruction(Protocol):
    """A row of any format."""

    @property
    def instruction(self) -> str: ...


R = TypeVar("R", bound=HasInstruction)


def normal_form(text: str) -> str:
    """A text as it is compared: NFC, case folded, white space collapsed.

    >>> normal_form("  Name the\\n CAPITAL ")
    'name the capital'
    """
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def instruction_hash(row: HasInstruction) -> str:
    """Seeded SHA-256 (hex) of a row's instruction in normal form; rows of one hash are one group."""
    return hashlib.sha256(f"{SPLIT_SEED}\n{normal_form(row.instruction)}".encode()).hexdigest()


def split_rows(rows: Sequence[R], usable: Callable[[R], bool] = lambda row: True) -> dict[str, list[R]]:
    """Deal rows to the splits by the seeded hash of their instruction, lowest first.

    Rows of equal instruction never straddle two splits: the rest of such a group, when a split is full, is not used.
    Where there are fewer rows than SPLIT_ROWS asks for, validation and test get the same shares of what there is, at
    least LEAST_ROWS, and train the rest.

    Args:
        usable: asked row by row, in the order of hashes, until the splits are full.
    Raises:
        DataError: fewer rows than LEAST_ROWS asks for.
    """
    kept: list[R] = []

    def usable_rows() -> Iterable[R]:
        for row in sorted(rows, key=instruction_hash):
            if usable(row):
                kept.append(row)
                yield row

    splits = _dealt(usable_rows(), SPLIT_ROWS)
    if len(splits["train"]) < SPLIT_ROWS["train"]:
        splits = _dealt(kept, _sizes(len(kept)))
    if any(len(splits[name]) < least for name, least in LEAST_ROWS.items()):
        have = ", ".join(f"{len(part)} {name}" for name, part in splits.items())
        needed = ", ".join(f"{least} {name}" for name, least in LEAST_ROWS.items())
        raise DataError(
            f"DATA: too few rows: at least {sum(LEAST_ROWS.values())} with distinct instructions are needed "
            f"({needed}), {len(kept)} usable rows fill only {have}"
        )
    return splits


def _sizes(n_rows: int) -> dict[str, int]:
    """Most rows of each split where there are `n_rows` in all."""
    whole = sum(SPLIT_ROWS.values())
    held_out = {name: max(LEAST_ROWS[name], SPLIT_ROWS[name] * n_rows // whole) for name in ("validation", "test")}
    return {name: min(size, SPLIT_ROWS[name]) for name, size in held_out.items()} | {"train": SPLIT_ROWS["train"]}


def _dealt(rows: Iterable[R], sizes: Mapping[str, int]) -> dict[str, list[R]]:
    """Fill one split after the other with groups of rows; the last ones may stay short."""
    splits: dict[str, list[R]] = {name: [] for name in sizes}
    names = iter(sizes)
    name = next(names)
    for _, equal_rows in groupby(rows, key=instruction_hash):
        for row in equal_rows:
            if len(splits[name]) < sizes[name]:
                splits[name].append(row)
        if len(splits[name]) == sizes[name]:
            name = next(names, "")
            if not name:
                break
    return splits
