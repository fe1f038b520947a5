"""An MLflow store without runs: MLflow makes one in seconds, which tests that are not about that need not wait for."""

import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from orchestrator.tracking.store import EXPERIMENT, open_client, store_file, store_uri


@cache
def _made() -> bytes:
    """One that was made as a sweep makes it, once in this process."""
    with TemporaryDirectory(prefix="qlora-sweep-") as folder:
        open_client(store_uri(Path(folder)), Path(folder))
        return store_file(Path(folder)).read_bytes()


def place_store(root: Path) -> None:
    """Put a new store under `root`, as if it had been made there."""
    root.mkdir(parents=True, exist_ok=True)
    store_file(root).write_bytes(_made())
    with closing(sqlite3.connect(store_file(root))) as db:
        where = (root / "artifacts").resolve().as_uri()
        db.execute("UPDATE experiments SET artifact_location = ? WHERE name = ?", (where, EXPERIMENT))
        db.commit()
