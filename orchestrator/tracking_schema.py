"""Whether this MLflow can read a store: one written by a newer MLflow it cannot."""

import sqlite3
from contextlib import closing
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

MIGRATIONS = Path("store", "db_migrations", "versions")
"""In MLflow's package: a file for each change of the schema, its name begins with the change's id."""


class StoreTooNew(RuntimeError):
    """A store of a newer MLflow than the one installed; what the user can do stands in the message."""


def check(store: Path) -> None:
    """Look at an SQLite store without MLflow, which would tell its user to upgrade the store.

    Raises:
        StoreTooNew: its last change of schema is none that the installed MLflow knows.
    """
    found = schema_of(store)
    if found is not None and found not in known_schemas():
        raise StoreTooNew(
            f"{store} is of a newer MLflow (schema {found}) than the installed {version('mlflow')}: install that one, or "
            "move the file away and write it again from the ledgers with qlora-sweep sync NAME"
        )


def schema_of(store: Path) -> str | None:
    """Id of the last change of a store's schema; None where there is none, or no store."""
    if not store.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{store.resolve().as_uri()}?mode=ro", uri=True)) as db:
            row = db.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:  # not a store, or a damaged one: MLflow says what is wrong
        return None
    return row[0] if row else None


def known_schemas() -> frozenset[str]:
    """Of the installed MLflow, which need not be imported for it."""
    spec = find_spec("mlflow")
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    paths = [path for folder in folders for path in (Path(folder) / MIGRATIONS).iterdir()]
    return frozenset(path.stem.partition("_")[0] for path in paths)
