"""How damage of a ledger is seen: a checksum in every row, and beside the tables a count and a digest of each.

A checksum is 62 bits of BLAKE2b over the table's name and the row's values. The table `digests` keeps how many rows
each table has and the sum of their checksums, so that a row that is lost, added or put back to an earlier state is
seen too. Both are written in the transaction that changes the row, by triggers: those live in the connection
(`watch`), not in the file, which any SQLite client can read. A client that changes a row without them is noticed.

`damage` reads all of it in one state of the file. Of a file in which it finds nothing, a bit that differs from what
was written lies where nothing is kept.
"""

import sqlite3
from collections.abc import Iterator
from hashlib import blake2b

TABLES = ("sweep", "trials", "measurements", "costs", "spans")
MODULUS = 2**62
"""Of checksums and digests: two of them can be added within SQLite's integers."""
DAMAGED = "is not as it was written"
LABELS = {
    "sweep": "fact {name!a:.40}",
    "trials": "trial {number!a:.20}",
    "measurements": "the measurement of trial {key!s:.12} at step {step!a:.20}",
    "costs": "the cost of key {key!a:.80}",
    "spans": "what {process!a:.20} did",
}
"""How a row of each table is named."""
TRIGGERS = """
CREATE TEMP TRIGGER IF NOT EXISTS {table}_added AFTER INSERT ON main.{table} BEGIN
    UPDATE digests SET n_rows = n_rows + 1 WHERE name = '{table}';
    UPDATE {table} SET checksum = {checksum} WHERE {same_key};
END;
CREATE TEMP TRIGGER IF NOT EXISTS {table}_changed AFTER UPDATE OF {columns} ON main.{table} BEGIN
    SELECT RAISE(ABORT, 'a row of {table} {damaged}') WHERE OLD.checksum <> {old_checksum};
    UPDATE {table} SET checksum = {checksum} WHERE {same_key};
END;
CREATE TEMP TRIGGER IF NOT EXISTS {table}_removed AFTER DELETE ON main.{table} BEGIN
    SELECT RAISE(ABORT, 'a row of {table} {damaged}') WHERE OLD.checksum <> {old_checksum};
    UPDATE digests SET n_rows = n_rows - 1, digest = (digest - OLD.checksum) & {mask} WHERE name = '{table}';
END;
CREATE TEMP TRIGGER IF NOT EXISTS {table}_sealed AFTER UPDATE OF checksum ON main.{table} BEGIN
    UPDATE digests SET digest = (digest - OLD.checksum + NEW.checksum) & {mask} WHERE name = '{table}';
END;
"""
"""A new checksum is made of the row as it is stored; a row that was damaged before is never given a new one."""


def checksum_of(table: str, *values: object) -> int:
    """Of a row's values in the order of its columns, the checksum itself left out."""
    return int.from_bytes(blake2b(ascii((table, *values)).encode(), digest_size=8).digest(), "big") % MODULUS


def watch(db: sqlite3.Connection) -> None:
    """Keep checksums and digests of all that this connection writes from now on."""
    db.execute("PRAGMA recursive_triggers = ON")  # a row that is replaced is a removed one too
    db.create_function("checksum_of", -1, checksum_of, deterministic=True)
    for table in TABLES:
        columns = [row["name"] for row in db.execute(f"PRAGMA table_info({table})") if row["name"] != "checksum"]
        keys = [row["name"] for row in db.execute(f"PRAGMA table_info({table})") if row["pk"]]
        for trigger in TRIGGERS.split("END;\n")[:-1]:
            text = trigger.format(
                table=table,
                columns=", ".join(columns),
                checksum=f"checksum_of('{table}', {', '.join(columns)})",
                old_checksum=f"checksum_of('{table}', {', '.join(f'OLD.{name}' for name in columns)})",
                same_key=" AND ".join(f"{name} = NEW.{name}" for name in keys),
                damaged=DAMAGED,
                mask=MODULUS - 1,
            )
            db.execute(text + "END")


def damage(db: sqlite3.Connection) -> Iterator[str]:
    """What is not as it was written: rows by name, tables, then what SQLite finds wrong with the file.

    Which tables there are is not asked here: those of an older version are fewer.

    Raises:
        sqlite3.DatabaseError: the file's structure cannot be followed.
    """
    digests = {row["name"]: (row["n_rows"], row["digest"]) for row in db.execute("SELECT * FROM digests")}
    here = {row["name"] for row in db.execute("SELECT name FROM sqlite_master")}
    for table in filter(here.__contains__, TABLES):
        yield from _damage_of(db, table, *digests.get(table, (None, None)))
    for row in db.execute("PRAGMA integrity_check(20)"):
        if row[0] != "ok":
            yield str(row[0])
    n_orphans = len(db.execute("PRAGMA foreign_key_check").fetchall())
    if n_orphans:
        yield f"{n_orphans} measurements are of no trial"


def _damage_of(db: sqlite3.Connection, table: str, n_written: object, digest: object) -> Iterator[str]:
    n_rows, total, whole = 0, 0, True
    try:
        for row in db.execute(f"SELECT * FROM {table}"):
            *values, checksum = row
            n_rows += 1
            if checksum_of(table, *values) == checksum:
                total += checksum
            else:
                whole = False
                yield f"{LABELS[table].format(**dict(row))} {DAMAGED}"
    except sqlite3.DatabaseError as error:
        yield f"table {table} cannot be read after its row {n_rows} ({error})"
        return
    if n_rows != n_written:
        yield f"table {table} holds {n_rows} rows, {n_written} were written"
    elif whole and total % MODULUS != digest:
        yield f"table {table} holds other rows than were written"
