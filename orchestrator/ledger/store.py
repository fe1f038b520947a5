"""The one truth about a sweep: a small transactional SQLite store, written by the driver only.

One row a trial key. Every state change is one transaction and must be one of TRANSITIONS; all else
(Optuna's study, MLflow's runs, figures, fronts) is a projection that can be rebuilt from here.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.ledger.rows import Entry, cost_of, entry_of
from orchestrator.ledger.schema import close, connect, named_errors, transaction
from trainables.values.config import Origin, State, TrialConfig, canonical_json
from trainables.values.findings import Comparison, TestEvaluation
from trainables.values.results import Cost, Evaluation, Measurement, TrialResult
from trainables.values.spans import Span
from trainables.values.workload import Workload

ON = " on "
"""Between a cost key's own name and the device, of all kinds of device but the first that it was measured on."""
FAULTS = "faults"
"""Fact: "compare KEY" or "evaluate KEY" -> why that failed, as long as it has not succeeded."""

TRANSITIONS: Mapping[State, frozenset[State]] = {
    "queued": frozenset({"running", "refused"}),
    "running": frozenset({"queued", "completed", "pruned", "oom", "diverged", "failed"}),
    "pruned": frozenset({"queued"}),  # taken up again as the baseline of a 4-bit trial
}


class LedgerError(RuntimeError):
    """An operation that would break the ledger's rules; a fault of this program, not of its user."""


class Ledger:
    """An open ledger. One connection; open another for another thread, and read a copy in another process."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """See orchestrator.ledger.schema.connect."""
        self.path = path
        self._db = connect(path, read_only=read_only)

    def close(self) -> None:
        """With everything in the one file, see orchestrator.ledger.schema.close."""
        close(self._db)

    def read_again(self) -> None:
        """Of one that reads a copy: take a new one."""
        db = connect(self.path, read_only=True)
        self._db.close()
        self._db = db

    def together(self) -> AbstractContextManager[None]:
        """Changes made inside are one: kept whole or not at all, with one wait for the disk."""
        return transaction(self._db, self.path)

    # --- what the sweep is about

    def set_fact(self, name: str, value: Any) -> None:
        """Keep one JSON value about the whole sweep."""
        with self.together():
            self._db.execute("INSERT OR REPLACE INTO sweep (name, value) VALUES (?, ?)", (name, canonical_json(value)))

    def fact(self, name: str, default: Any = None) -> Any:
        """Read back `set_fact`."""
        rows = self._read("SELECT value FROM sweep WHERE name = ?", name)
        return json.loads(rows[0][0]) if rows else default

    def facts(self) -> dict[str, Any]:
        """All of them by name."""
        return {name: json.loads(value) for name, value in self._read("SELECT name, value FROM sweep")}

    def workload(self) -> Workload | None:
        """What all trials of this sweep share; None before the first run."""
        values = self.fact("workload")
        return Workload(**values) if values else None

    # --- changes, one transaction each; each returns the trial as it is then

    def add(
        self,
        key: str,
        config: TrialConfig,
        *,
        params: Mapping[str, Any],
        origin: Origin,
        number: int | None = None,
    ) -> Entry:
        """Queue a new trial.

        Args:
            number: None is the one after the highest.
        Raises:
            LedgerError: the key is known.
        """
        with self.together():
            if self._db.execute("SELECT 1 FROM trials WHERE key = ?", (key,)).fetchone():
                raise LedgerError(f"trial {key[:12]} is in the ledger already")
            self._db.execute(
                "INSERT INTO trials (key, number, state, origin, config, params, cost_key) "
                "VALUES (?, coalesce(?, (SELECT coalesce(max(number) + 1, 0) FROM trials)), 'queued', ?, ?, ?, ?)",
                (key, number, origin, canonical_json(config.to_dict()), canonical_json(dict(params)), config.cost_key),
            )
            return self._written(key)

    def next_number(self) -> int:
        """The one after the highest of all trials."""
        return self._db.execute("SELECT coalesce(max(number) + 1, 0) FROM trials").fetchone()[0]

    def _move(self, key: str, new: State, **columns: Any) -> None:
        """Change state inside the caller's transaction, if TRANSITIONS allow it."""
        row = self._db.execute("SELECT state FROM trials WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise LedgerError(f"no trial {key[:12]} in the ledger")
        if new not in TRANSITIONS.get(row["state"], ()):
            raise LedgerError(f"trial {key[:12]} cannot go from {row['state']} to {new}")
        values = {"state": new, **columns}
        assignments = ", ".join(f"{name} = ?" for name in values)
        self._db.execute(f"UPDATE trials SET {assignments} WHERE key = ?", (*values.values(), key))

    def _written(self, key: str) -> Entry:
        """A trial as it is now: each write returns what it wrote."""
        return self._entries("WHERE key = ?", key)[0]

    def start(self, key: str) -> Entry:
        """queued -> running."""
        with self.together():
            self._move(key, "running", started_at=time.time())
            return self._written(key)

    def record(self, key: str, measurement: Measurement) -> Entry:
        """Keep a rung of a running trial; a rung reported again (after a retry) replaces the first."""
        with self.together():
            state = self._db.execute("SELECT state FROM trials WHERE key = ?", (key,)).fetchone()
            if state is None or state["state"] != "running":
                raise LedgerError(f"trial {key[:12]} reports step {measurement.step} but does not run")
            values = asdict(measurement) | {"train_curve": canonical_json(measurement.train_curve)}
            self._db.execute(
                "INSERT OR REPLACE INTO measurements (key, at, step, train_loss_nats, eval_loss_nats, train_curve) "
                "VALUES (:key, :at, :step, :train_loss_nats, :eval_loss_nats, :train_curve)",
                {"key": key, "at": time.time(), **values},
            )
            return self._written(key)

    def finish(
        self,
        key: str,
        state: State,
        *,
        reason: str | None = None,
        environment: Mapping[str, str] | None = None,
        adapter_sha256: str | None = None,
        train_seconds: float | None = None,
    ) -> Entry:
        """running -> a final state.

        Raises:
            LedgerError: a stop without a reason, or a trial that does not run.
        """
        if state != "completed" and not reason:
            raise LedgerError(f"trial {key[:12]} ends as {state} without a reason")
        with self.together():
            self._move(
                key,
                state,
                reason=reason,
                environment=canonical_json(dict(environment or {})),
                adapter_sha256=adapter_sha256,
                train_seconds=train_seconds,
                ended_at=time.time(),
            )
            return self._written(key)

    def requeue(self, key: str) -> Entry:
        """Take a trial up again: one that was interrupted, or a pruned one that is needed as a baseline.

        Its rungs stay: it may go on from a checkpoint, and what it reports again is the same and replaces them.
        """
        with self.together():
            self._move(key, "queued", started_at=None, ended_at=None, reason=None)
            return self._written(key)

    def requeue_running(self) -> int:
        """Take up all that was running when the driver stopped; returns how many."""
        rows = self._read("SELECT key FROM trials WHERE state = 'running'")
        for row in rows:
            self.requeue(row["key"])
        return len(rows)

    def set_similarity(self, key: str, similarity: Comparison) -> Entry:
        """Write a completed 4-bit trial's similarity to its baseline."""
        return self._set(key, "similarity", similarity)

    def set_test_evaluation(self, key: str, test_evaluation: TestEvaluation) -> Entry:
        """Write what a completed trial came to on the test rows."""
        return self._set(key, "test_evaluation", test_evaluation)

    def _set(self, key: str, column: str, value: Comparison | TestEvaluation) -> Entry:
        with self.together():
            changed = self._db.execute(
                f"UPDATE trials SET {column} = ? WHERE key = ? AND state = 'completed'",
                (canonical_json(asdict(value)), key),
            ).rowcount
            if changed != 1:
                raise LedgerError(f"no completed trial {key[:12]} to write a {column} to")
            return self._written(key)

    def set_fault(self, what: Evaluation, key: str, reason: str | None) -> Entry:
        """Keep why a comparison or test evaluation failed, None once it succeeded; the trial itself stays completed."""
        with self.together():
            faults = self.fact(FAULTS, {})
            before = faults.pop(f"{what} {key}", None)
            if reason:
                faults[f"{what} {key}"] = reason
            if before != (reason or None):
                self.set_fact(FAULTS, faults)
            return self._written(key)

    def keep_cost(self, key: str, cost: Cost, *, of: str | None = None) -> Cost:
        """Keep a cost key's measurement on a kind of device unless there is one; returns the one that counts.

        Args:
            of: key of the trial that ran there; its memory and time are those of this cost key on this kind now.
        """
        with self.together():
            first = self.cost(key)
            name = key if first is None or first.device == cost.device else f"{key}{ON}{cost.device}"
            self._db.execute(
                "INSERT OR IGNORE INTO costs (key, cost) VALUES (?, ?)", (name, canonical_json(asdict(cost)))
            )
            if of is not None:
                self._db.execute("UPDATE trials SET cost_key = ? WHERE key = ?", (name, of))
        return self.cost(name)  # type: ignore[return-value]

    def keep_spans(self, spans: Iterable[Span]) -> None:
        """Add to what the sweep's processes did when."""
        columns = "(process, began, phase, ended) VALUES (:process, :began, :phase, :ended)"
        with self.together():
            self._db.executemany(f"INSERT OR REPLACE INTO spans {columns}", map(asdict, spans))

    # --- reading

    def _read(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        with named_errors(self.path):
            return self._db.execute(statement, values).fetchall()

    @property
    def version(self) -> int:
        """Another number once another connection has written (SQLite's `PRAGMA data_version`)."""
        return int(self._read("PRAGMA data_version")[0][0])

    def costs(self, key: str) -> tuple[Cost, ...]:
        """Measured memory and time of a cost key on each kind of device where they are known."""
        named = "key = ? OR substr(key, 1, ?) = ?"
        rows = self._read(f"SELECT cost FROM costs WHERE {named} ORDER BY key", key, len(key + ON), key + ON)
        return tuple(cost_of(row[0]) for row in rows)

    def cost(self, key: str) -> Cost | None:
        """Measured memory and time of a cost key, on the kind of device that was first, if they are known."""
        rows = self._read("SELECT cost FROM costs WHERE key = ?", key)
        return cost_of(rows[0][0]) if rows else None

    def spans(self) -> list[Span]:
        """What the sweep's processes did, in the order in which it began."""
        rows = self._read("SELECT process, phase, began, ended FROM spans ORDER BY began, ended DESC, process, phase")
        return [Span(**dict(row)) for row in rows]

    def entry(self, key: str) -> Entry | None:
        """One trial, or None."""
        found = self._entries("WHERE key = ?", key)
        return found[0] if found else None

    def entries(self) -> list[Entry]:
        """All trials by number."""
        return self._entries("")

    def trials(self) -> list[TrialResult]:
        """All trials by number, as others know them."""
        return [entry.result for entry in self.entries()]

    def _entries(self, where: str, *values: Any) -> list[Entry]:
        self._db.execute("SAVEPOINT one_state")  # of all reads, inside a transaction or not
        try:
            rows = self._read(f"SELECT * FROM trials {where} ORDER BY number", *values)
            marks = self._read(f"SELECT * FROM measurements {where} ORDER BY key, step", *values)
            named = f"SELECT cost_key FROM trials {where}"
            measured = self._read(f"SELECT key, cost FROM costs WHERE key IN ({named})", *values)
            faults = self.fact(FAULTS, {})
        finally:
            self._db.execute("RELEASE one_state")
        costs = {row["key"]: cost_of(row["cost"]) for row in measured}
        history: dict[str, list[sqlite3.Row]] = {}
        for mark in marks:
            history.setdefault(mark["key"], []).append(mark)
        return [entry_of(row, history.get(row["key"], []), costs.get(row["cost_key"]), faults) for row in rows]
