"""Writes what workers report into the ledger: the one way from a worker to the truth."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback

from orchestrator.driver.scheduler import Pruner
from orchestrator.ledger import Ledger
from orchestrator.ledger.rows import COMPARISON, COST, TEST_EVALUATION
from orchestrator.security.redaction import redacted
from orchestrator.workers import adapter_store, checkpoints, storage
from orchestrator.workers.tune_trainable import Task
from trainables.values.results import Measurement

TUNES_OWN = frozenset({"done", "training_iteration", "trial_id", "node_ip", "hostname", "pid"})
"""Of a result: what Ray Tune itself still reads once it is recorded."""


class Recorder(Callback):
    """Called by Tune with every result, before the Searcher hears that a trial ended."""

    def __init__(
        self, ledger: Ledger, adapters: Path, pruner: Pruner, *, began: Callable[[str], None] = lambda trial_id: None
    ) -> None:
        """
        Args:
            began: told the id of each Tune trial that a worker takes up.
        """
        self._ledger = ledger
        self._adapters = adapters
        self._snapshots = adapters.parent / checkpoints.FOLDER
        self._pruner = pruner
        self._began = began

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Pass on that a worker took up a task."""
        self._began(trial.trial_id)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Record one report, and leave Tune, which keeps the last result of every trial, nothing but its own of it."""
        self._record(Task.from_dict(trial.config["task"]), result)
        for name in result.keys() - TUNES_OWN:
            del result[name]

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Take from a trial that ended what Tune would keep of it to the end of the sweep and needs no more."""
        for kept in (trial.config, trial.evaluated_params, trial.metric_analysis, trial.metric_n_steps):
            kept.clear()
        trial.last_result.pop("experiment_tag", None)  # the config again, as text

    def _record(self, task: Task, result: dict[str, Any]) -> None:
        if result.get("reason"):
            result["reason"] = redacted(result["reason"])
        files = result.pop("adapter", None)
        if "adapter_at" in result:  # the sweep's folder keeps a copy, for export, MLflow and verify
            files = storage.read(*result.pop("adapter_at"), task.key)
        if task.kind == "train":
            self._record_trial(task, result, files)
        else:
            self._ledger.set_fault(task.kind, task.key, result.get("reason"))
        if result.get("similarity") and self._completed(result["similarity_of"]):
            self._ledger.set_similarity(result["similarity_of"], COMPARISON.validate_python(result["similarity"]))
        if result.get("test_evaluation"):
            self._ledger.set_test_evaluation(task.key, TEST_EVALUATION.validate_python(result["test_evaluation"]))

    def _completed(self, key: str) -> bool:
        """False where a trial's adapter is all that a killed driver left of it."""
        entry = self._ledger.entry(key)
        return entry is not None and entry.result.state == "completed"

    def _is_of_search(self, key: str) -> bool:
        """False of a run under another seed, which no rule compares with the search."""
        entry = self._ledger.entry(key)
        return entry is not None and entry.result.is_of_search

    def _record_trial(self, task: Task, report: dict[str, Any], files: dict[str, bytes] | None) -> None:
        if report.get("cost"):
            self._ledger.keep_cost(task.config.cost_key, COST.validate_python(report["cost"]), of=task.key)
        if report.get("measurement"):
            self._ledger.record(task.key, Measurement(**report["measurement"]))
        state, reason = report["state"], report.get("reason")
        if not report["done"]:
            return
        if state == "running":
            state, reason = "pruned", self._pruner.reason(task.key)
        elif state == "completed" and self._is_of_search(task.key) and (why := self._pruner.completed(task, report)):
            state, reason, files = "pruned", why, None
        digest = adapter_store.write(self._adapters, task.key, files) if files else None
        self._ledger.finish(
            task.key,
            state,
            reason=reason,
            environment=report.get("environment"),
            adapter_sha256=digest,
            train_seconds=report.get("train_seconds"),
        )
        checkpoints.discard(self._snapshots, task.key)

    def __deepcopy__(self, memo: dict) -> "Recorder":
        return self  # Tune copies its settings; the ledger is one

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune's own snapshot is not used
