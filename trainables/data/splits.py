"""Deal checked rows to the validation, test and train splits."""

import hashlib
from collections.abc import Sequence
from itertools import groupby

from trainables.data.alpaca import Row
from trainables.values.errors import DataError

SPLIT_ROWS = {"validation": 128, "test": 256, "train": 1000}
"""Rows of each split, filled in this order (measurement protocol 1)."""
SPLIT_SEED = 0


def split_rows(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Deal rows to the splits by the seeded hash of their instruction, lowest first.

    Rows of equal instruction never straddle two splits: the rest of such a group, when a split is full, is not used.

    Raises:
        DataError: fewer rows than the splits need.
    """

    def instruction_hash(row: Row) -> str:
        return hashlib.sha256(f"{SPLIT_SEED}\n{row.instruction}".encode()).hexdigest()

    splits: dict[str, list[Row]] = {name: [] for name in SPLIT_ROWS}
    names = iter(SPLIT_ROWS)
    name = next(names)
    for _, equal_rows in groupby(sorted(rows, key=instruction_hash), key=instruction_hash):
        group = list(equal_rows)
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
