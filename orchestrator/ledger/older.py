"""Ledgers of older schema versions: their rows in today's tables, columns and words. Pure.

Version 1 kept similarities without intervals and references, which `resume` measures again. Version 2 had no checksums,
a column `reused` that nothing read, and other words: twin, reseed, repeat, judgement, cost cell, search rows. Version 3
kept the training loss of each rung alone, and no spans.
"""

import json
import re
import sqlite3
from collections.abc import Mapping
from typing import Any

CURVE = "train_curve"
"""Column that came with version 4."""
TABLES = ("sweep", "trials", "measurements", "costs")
COLUMNS = {"judgement": "test_evaluation", "cost_cell": "cost_key", "cell": "key"}
ORIGINS = {"twin": "baseline", "reseed": "baseline replicate", "repeat": "replicate"}
FIELDS = {"reseeded": "replicates", "felt": "breakdown"}
"""Of comparisons and test evaluations."""
SPLITS = {"search": "validation", "report": "test"}


def tables_then(version: int) -> dict[str, str]:
    """Tables of today -> of an older version; empty of version 0, a new file."""
    return {table: "cost_cells" if table == "costs" and version < 3 else table for table in TABLES if version}


def schema_3(schema: str) -> str:
    """Statements that make the tables of version 3, from those of today."""
    lines_of_4 = rf"^( *{CURVE} |INSERT .*'spans').*\n|^CREATE TABLE spans [^;]*;\n"
    return re.sub(lines_of_4, "", schema, flags=re.MULTILINE)


def earliest_of(db: sqlite3.Connection) -> int:
    """The earliest version that a ledger's tables can be of, whatever version it says."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'digests'").fetchone():
        return 1
    columns = {row["name"] for row in db.execute("PRAGMA table_info(measurements)")}
    return 4 if CURVE in columns else 3


def row_of_today(table: str, row: Mapping[str, Any], version: int) -> dict[str, Any]:
    """A row of an older version as today's table has it; its checksum is made anew.

    Args:
        table: its name today.
    """
    if version == 3:
        return {name: value for name, value in row.items() if name != "checksum"}
    values = {COLUMNS.get(name, name): value for name, value in row.items() if name != "reused"}
    if table == "trials":
        values["origin"] = ORIGINS.get(values["origin"], values["origin"])
        for name in ("similarity", "test_evaluation"):
            values[name] = _renamed(values.get(name)) if version > 1 else None
    if table == "sweep":
        values["value"] = _fact_of_today(values["name"], values["value"])
    return values


def _renamed(text: str | None) -> str | None:
    """JSON with today's names of fields, at any depth."""
    return None if text is None else json.dumps(json.loads(text, object_hook=_with_todays_fields))


def _with_todays_fields(value: dict[str, Any]) -> dict[str, Any]:
    return {FIELDS.get(name, name): part for name, part in value.items()}


def _fact_of_today(name: str, text: str) -> str:
    """A fact whose keys were other words."""
    if name == "data_counts":
        return json.dumps({SPLITS.get(key, key): n for key, n in json.loads(text).items()})
    if name == "faults":
        return json.dumps({key.replace("judge ", "evaluate ", 1): why for key, why in json.loads(text).items()})
    return text
