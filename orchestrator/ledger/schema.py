"""A ledger's file: its tables, how it is opened, how one of an older version is taken over, and transactions."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from trainables.errors import ConfigError, DiskFull

SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE sweep (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE trials (
    key TEXT PRIMARY KEY,
    number INTEGER NOT NULL UNIQUE,
    state TEXT NOT NULL,
    origin TEXT NOT NULL,
    reused INTEGER NOT NULL DEFAULT 0,
    config TEXT NOT NULL,
    params TEXT NOT NULL,
    cost_cell TEXT NOT NULL,
    environment TEXT NOT NULL DEFAULT '{}',
    similarity TEXT,
    judgement TEXT,
    reason TEXT,
    adapter_sha256 TEXT,
    train_seconds REAL,
    started_at REAL,
    ended_at REAL
) WITHOUT ROWID;
CREATE INDEX trials_by_state ON trials (state);
CREATE TABLE measurements (
    key TEXT NOT NULL REFERENCES trials (key),
    step INTEGER NOT NULL,
    at REAL NOT NULL,
    train_loss_nats REAL NOT NULL,
    eval_loss_nats REAL NOT NULL,
    PRIMARY KEY (key, step)
) WITHOUT ROWID;
CREATE TABLE cost_cells (cell TEXT PRIMARY KEY, cost TEXT NOT NULL) WITHOUT ROWID;
"""
FROM_VERSION_1 = ("ALTER TABLE trials ADD COLUMN judgement TEXT", "UPDATE trials SET similarity = NULL")
"""Version 1 kept similarities without intervals and yardsticks; `resume` measures them again."""


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open `path`, creating it (and its tables) where it is new; one of an older version is taken over.

    Args:
        read_only: read a copy in memory, as the file is now, and leave the file as it is.
    Raises:
        ConfigError: the file is no ledger, of another schema version, or, read only, not there.
    """
    if read_only and not path.is_file():
        raise ConfigError(f"there is no ledger {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(":memory:" if read_only else path, timeout=30, isolation_level=None)
    db.row_factory = sqlite3.Row
    try:
        if read_only:
            with closing(sqlite3.connect(path, timeout=30)) as file:
                file.backup(db)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        with transaction(db, path):
            _create_or_check(db, path)
        db.execute(f"PRAGMA query_only = {read_only:d}")
    except sqlite3.DatabaseError as error:
        db.close()
        raise ConfigError(f"{path} is no readable ledger ({error}); restore it or start under a new NAME") from None
    return db


def _create_or_check(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version == SCHEMA_VERSION:
        return
    if version not in (0, 1):
        raise ConfigError(f"{path} has ledger version {version}, this program reads {SCHEMA_VERSION}")
    for statement in FROM_VERSION_1 if version else SCHEMA.split(";"):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


@contextmanager
def transaction(db: sqlite3.Connection, path: Path) -> Iterator[None]:
    """All of what is written inside, or nothing; one inside another is kept with the outer one.

    Raises:
        DiskFull: no space left for `path`.
    """
    if db.in_transaction:
        with _savepoint(db):
            yield
        return
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("COMMIT")
    except BaseException as error:
        _roll_back(db)
        if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
            raise DiskFull(f"no space left for {path}; free some and resume") from None
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
