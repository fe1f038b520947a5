"""Writes what workers report into the ledger: the one way from a worker to the truth."""

from pathlib import Path
from typing import Any

from ray.tune import Callback

from orchestrator import adapter_store
from orchestrator.ledger import Ledger
from orchestrator.pruning import Pruner
from orchestrator.tune_trainable import Task
from trainables.config import Cost, Measurement, Similarity


class Recorder(Callback):
    """Called by Tune with every result, before the Searcher hears that a trial ended."""

    def __init__(self, ledger: Ledger, adapters: Path, pruner: Pruner) -> None:
        self._ledger = ledger
        self._adapters = adapters
        self._pruner = pruner

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Record one report. The adapter's bytes are taken out of `result`, so that Tune keeps no copy."""
        task = Task.from_dict(trial.config["task"])
        files = result.pop("adapter", None)
        if task.kind == "train":
            self._record_trial(task, result, files)
        if result.get("similarity"):
            self._record_similarity(result["similarity_of"], Similarity(**result["similarity"]))

    def _record_similarity(self, key: str, similarity: Similarity) -> None:
        entry = self._ledger.entry(key)
        if entry and entry.result.state == "completed":  # else its adapter is all that a killed driver left of it
            self._ledger.set_similarity(key, similarity)

    def _record_trial(self, task: Task, report: dict[str, Any], files: dict[str, bytes] | None) -> None:
        if report.get("cost"):
            self._ledger.keep_cost(task.config.cost_cell, Cost(**report["cost"]))
        if report.get("measurement"):
            self._ledger.record(task.key, Measurement(**report["measurement"]))
        state, reason = report["state"], report.get("reason")
        if not report["done"]:
            return
        if state == "running":
            state, reason = "pruned", self._pruner.reason(task.key)
        digest = adapter_store.write(self._adapters, task.key, files) if files else None
        self._ledger.finish(
            task.key,
            state,
            reason=reason,
            environment=report.get("environment"),
            adapter_sha256=digest,
            train_seconds=report.get("train_seconds"),
        )

    def __deepcopy__(self, memo: dict) -> "Recorder":
        return self  # Tune copies its settings; the ledger is one

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune's own snapshot is not used
