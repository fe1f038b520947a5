"""The demo's rows in Alpaca's form, from a seeded generator of our own, and the frame that a model reads them in.

Only the standard library and draws whose algorithm Python has kept: every Python from 3.11 to 3.13 gives the same rows.
"""

from __future__ import annotations

from random import Random

from trainables.demo import END
from trainables.demo.build.kinds import WITH_INPUT, WITHOUT_INPUT, Kind

Row = dict[str, str]

ROWS_SEED = 20_240
N_ROWS_PER_KIND = 140


def prompt(row: Row) -> str:
    """What the model reads before it answers (measurement protocol 1)."""
    given = f"### Input:\n{row['input']}\n\n" if row["input"] else ""
    return f"### Instruction:\n{row['instruction']}\n\n{given}### Response:\n"


def framed(row: Row) -> str:
    """One whole row as text: prompt, answer, end token."""
    return prompt(row) + row["output"] + END


def distinct_rows(kind: Kind, n_rows: int, rng: Random) -> list[Row]:
    """n_rows of one kind, no two with both the same instruction and the same input."""
    found: dict[tuple[str, str], Row] = {}
    while len(found) < n_rows:
        instruction, given, output = kind(rng)
        found.setdefault((instruction, given), {"instruction": instruction, "input": given, "output": output})
    return list(found.values())


def rows_by_kind(seed: int = ROWS_SEED) -> dict[str, list[Row]]:
    """Every row under the name of its kind; each kind has a random source of its own."""
    return {
        kind.__name__: distinct_rows(kind, N_ROWS_PER_KIND, Random(f"{seed}:{kind.__name__}"))
        for kind in WITH_INPUT + WITHOUT_INPUT
    }


def alpaca_rows(seed: int = ROWS_SEED) -> list[Row]:
    """All rows, shuffled: the content of alpaca_demo.json."""
    rows = [row for kind_rows in rows_by_kind(seed).values() for row in kind_rows]
    Random(seed).shuffle(rows)
    return rows
