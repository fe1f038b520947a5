"""An MLflow store without runs: MLflow makes one in seconds, which tests that are not about that need not wait for."""

import os
import sqlite3
from contextlib import closing
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from orchestrator.tracking import client as store_maker
from orchestrator.tracking.client import open_client
from orchestrator.tracking.store import EXPERIMENT, store_file, store_uri

BUILD = Path(__file__).resolve().parents[2] / "build"


@cache
def _made() -> bytes:
    """One that was made as a sweep makes it: once for each MLflow and each version of our code that makes it."""
    made_by = f"mlflow {version('mlflow')}\n".encode() + Path(store_maker.__file__).read_bytes()
    kept = BUILD / f"store-{sha256(made_by).hexdigest()[:16]}.db"
    if not kept.exists():
        with TemporaryDirectory(prefix="qlora-sweep-") as folder:
            open_client(store_uri(Path(folder)), Path(folder))
            BUILD.mkdir(exist_ok=True)
            scratch = kept.with_suffix(f".{os.getpid()}")
            scratch.write_bytes(store_file(Path(folder)).read_bytes())
            scratch.replace(kept)
    return kept.read_bytes()


def place_store(root: Path) -> None:
    """Put a new store under `root`, as if it had been made there."""
    root.mkdir(parents=True, exist_ok=True)
    store_file(root).write_bytes(_made())
    with closing(sqlite3.connect(store_file(root))) as db:
        where = (root / "artifacts").resolve().as_uri()
        db.execute("UPDATE experiments SET artifact_location = ? WHERE name = ?", (where, EXPERIMENT))
        db.commit()
