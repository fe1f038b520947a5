"""A ledger's file: its tables, how it is opened, how one of an older version is taken over, and transactions.

Whoever opens a ledger checks all of it first (see checksums.py), in one state of the file: a process that writes
meanwhile is not in the way, and not held up. Only the driver keeps the file open. All others, MLflow's writer too,
read a copy in memory, so that none of them, killed at any moment, keeps the driver from leaving everything in the
one file when it closes it.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path

from orchestrator.ledger.checksums import damage, watch
from orchestrator.ledger.older import earliest_of, row_of_today, schema_3, tables_then
from trainables.values.errors import ConfigError, DiskFull, LedgerDamaged

SCHEMA_VERSION = 4
SCHEMA = """
CREATE TABLE sweep (name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE trials (
    key TEXT PRIMARY KEY,
    number INTEGER NOT NULL UNIQUE,
    state TEXT NOT NULL,
    origin TEXT NOT NULL,
    config TEXT NOT NULL,
    params TEXT NOT NULL,
    cost_key TEXT NOT NULL,
    environment TEXT NOT NULL DEFAULT '{}',
    similarity TEXT,
    test_evaluation TEXT,
    reason TEXT,
    adapter_sha256 TEXT,
    train_seconds REAL,
    started_at REAL,
    ended_at REAL,
    checksum INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX trials_by_state ON trials (state);
CREATE TABLE measurements (
    key TEXT NOT NULL REFERENCES trials (key),
    step INTEGER NOT NULL,
    at REAL NOT NULL,
    train_loss_nats REAL NOT NULL,
    eval_loss_nats REAL NOT NULL,
    train_curve TEXT NOT NULL DEFAULT '[]',
    checksum INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (key, step)
) WITHOUT ROWID;
CREATE TABLE costs (key TEXT PRIMARY KEY, cost TEXT NOT NULL, checksum INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE spans (
    process TEXT NOT NULL,
    began REAL NOT NULL,
    phase TEXT NOT NULL,
    ended REAL NOT NULL,
    checksum INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (process, began, phase)
) WITHOUT ROWID;
CREATE TABLE digests (name TEXT PRIMARY KEY, n_rows INTEGER NOT NULL, digest INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO digests VALUES ('sweep', 0, 0), ('trials', 0, 0), ('measurements', 0, 0), ('costs', 0, 0);
INSERT INTO digests VALUES ('spans', 0, 0);
"""
REMEDY = "restore it from a copy, or start under a new NAME"
ID_FILE = "id"
"""Beside the ledger: its name, by which one that was emptied or replaced is told from a new one."""
DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CONSTRAINT_TRIGGER")
NO_ACCESS = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_READONLY")
"""Beginnings of the names of SQLite's errors."""
CLOSE_MILLISECONDS = 5000
"""How long closing waits for other processes to end their reading."""


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open `path`, creating it (and its tables) where it is new; one of an older version is taken over.

    Args:
        read_only: read a copy in memory, as the file is now, and leave the file as it is.
    Raises:
        ConfigError: the file cannot be opened, is of another schema version, or, read only, not there.
        LedgerDamaged: it is no ledger, not as it was written, or not the one that was here.
    """
    if read_only and not path.is_file():
        if path.with_name(ID_FILE).exists():
            raise LedgerDamaged(f"{path} is gone; {REMEDY}")
        raise ConfigError(f"there is no ledger {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with named_errors(path):
            return _opened(path, read_only)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter in the text of an error of SQLite's
        if getattr(error, "sqlite_errorname", "").startswith(NO_ACCESS):
            raise ConfigError(f"{path} cannot be opened ({error})") from None
        raise LedgerDamaged(f"{path} is no readable ledger ({error}); {REMEDY}") from None


def _opened(path: Path, read_only: bool) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:" if read_only else path, timeout=30, isolation_level=None)
    try:
        _make_ready(db, path, read_only)
        _refuse_another(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _make_ready(db: sqlite3.Connection, path: Path, read_only: bool) -> None:
    db.row_factory = sqlite3.Row
    if read_only:
        with closing(sqlite3.connect(path, timeout=30)) as file:
            file.backup(db)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA temp_store = MEMORY")
    version = _version(db)
    if version != SCHEMA_VERSION:
        if 0 < version < SCHEMA_VERSION and not read_only:
            with closing(sqlite3.connect(f"{path}.v{version}")) as copy:
                db.backup(copy)
        with transaction(db, path):
            _create_or_take_over(db, path)
    with _one_state(db):
        _refuse_damage(db, path)
    watch(db)
    if not read_only:
        with transaction(db, path):
            db.execute("DELETE FROM sweep WHERE 0")  # changes nothing, and fails where nothing can be written
    db.execute(f"PRAGMA query_only = {read_only:d}")


def _version(db: sqlite3.Connection) -> int:
    return db.execute("PRAGMA user_version").fetchone()[0]


def _create_or_take_over(db: sqlite3.Connection, path: Path) -> None:
    """Make the tables, and fill them from those of an older version, see older.py."""
    version = _version(db)
    if version == SCHEMA_VERSION:  # another process was first
        return
    if version not in range(SCHEMA_VERSION):
        raise ConfigError(f"{path} has ledger version {version}, this program reads {SCHEMA_VERSION}")
    if version and earliest_of(db) > version:
        raise LedgerDamaged(f"{path} is damaged: its version is {version}, its tables are of a later one; {REMEDY}")
    if version == 3:
        _refuse_damage(db, path, schema_3(SCHEMA))
        db.execute("DROP TABLE digests")
    then = tables_then(version)
    rows = {table: db.execute(f"SELECT * FROM {older}").fetchall() for table, older in then.items()}
    for older in reversed(then.values()):
        db.execute(f"DROP TABLE {older}")
    for statement in SCHEMA.split(";"):
        db.execute(statement)
    watch(db)
    for table, old in rows.items():
        for row in old:
            values = row_of_today(table, dict(row), version)
            places = ", ".join("?" * len(values))
            db.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({places})", (*values.values(),))
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _refuse_damage(db: sqlite3.Connection, path: Path, schema: str = SCHEMA) -> None:
    tables = _tables(db)
    if tables != _tables_of(schema):
        of = "those of a version between releases" if any("cell" in str(sql) for *_, sql in tables) else "others"
        raise LedgerDamaged(f"{path} is no readable ledger (its tables are {of}); {REMEDY}")
    found = list(damage(db))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise LedgerDamaged(f"{path} is damaged: {found[0]}{more}; {REMEDY}")


def _tables(db: sqlite3.Connection) -> list[tuple[str, ...]]:
    found = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name, type")
    return [tuple(row) for row in found]


@cache
def _tables_of(schema: str) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(schema)
        return _tables(db)


def _refuse_another(db: sqlite3.Connection, path: Path) -> None:
    """Raise where the ledger has lost its content, or another lies in its place."""
    id_file = path.with_name(ID_FILE)
    expected = id_file.read_text("utf-8", errors="replace") if id_file.exists() else ""
    row = db.execute("SELECT value FROM sweep WHERE name = 'id'").fetchone()
    if not expected or (row and json.loads(row[0]) == expected):
        return
    what = "is another ledger than" if row else "has lost its content: it is not"
    raise LedgerDamaged(
        f"{path} {what} the one that {id_file} names; {REMEDY}, or delete {ID_FILE} if the ledger is right"
    )


def close(db: sqlite3.Connection) -> None:
    """Close a connection, with everything in the one file unless another process reads it all the while."""
    with suppress(sqlite3.DatabaseError):
        db.execute(f"PRAGMA busy_timeout = {CLOSE_MILLISECONDS}")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


def bring_into_one_file(path: Path, within_seconds: float) -> None:
    """From a process that ends without closing what it has open there; no longer than that, and no more than it can."""
    with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(path, timeout=within_seconds)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Damage and a full disk, as SQLite finds them, by the names that say what to do.

    Raises:
        LedgerDamaged, DiskFull: for a sqlite3.DatabaseError of these kinds.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        name = getattr(error, "sqlite_errorname", "")
        if name == "SQLITE_FULL":
            raise DiskFull(f"no space left for {path}; free some and resume") from None
        if name.startswith(DAMAGE):
            raise LedgerDamaged(f"{path} is no readable ledger ({error}); {REMEDY}") from None
        raise


@contextmanager
def _one_state(db: sqlite3.Connection) -> Iterator[None]:
    """All that is read inside is of one moment."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("ROLLBACK")


@contextmanager
def transaction(db: sqlite3.Connection, path: Path) -> Iterator[None]:
    """All of what is written inside, or nothing; one inside another is kept with the outer one.

    Raises:
        DiskFull, LedgerDamaged: see named_errors.
    """
    if db.in_transaction:
        with _savepoint(db):
            yield
        return
    with named_errors(path):
        try:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("COMMIT")
        except BaseException:
            _roll_back(db)
            raise


@contextmanager
def _savepoint(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("SAVEPOINT inner_one")
    try:
        yield
    except BaseException:
        if db.in_transaction:  # SQLite itself gives the whole up where, say, the disk is full
            db.execute("ROLLBACK TO inner_one")
            db.execute("RELEASE inner_one")
        raise
    db.execute("RELEASE inner_one")


def _roll_back(db: sqlite3.Connection) -> None:
    """End an open transaction; once more where the rollback itself is broken off, which leaves it open."""
    for n_left in (1, 0):
        try:
            if db.in_transaction:
                db.execute("ROLLBACK")
        except sqlite3.OperationalError:
            if not n_left:
                raise
