"""The only Trainable: a warm worker that takes one task after the other.

Each step of the Trainable is one TaskReport of its task, see orchestrator.ledger.task.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ray import tune

from orchestrator.workers import storage
from orchestrator.workers.compiling import begin
from orchestrator.workers.versions import refuse_here
from trainables.cost.timeline import Timeline

if TYPE_CHECKING:
    from orchestrator.ledger.task import TaskReport


class SweepTrainable(tune.Trainable):
    """Runs tasks on one device, see orchestrator.workers.worker."""

    def setup(self, config: dict[str, Any]) -> None:
        refuse_here(config.get("versions"))  # first: what is imported next may not be there
        os.environ["HF_HUB_OFFLINE"] = "1"  # all inputs are on this node already
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        timeline = Timeline()
        is_first = config["worker"]["number"] == 0  # others would compile the same
        compiling = begin(config["device"]) if is_first else None
        with timeline.span("imports"):
            from orchestrator.workers.worker import Worker

        self._worker = Worker(config["device"], timeline, compiling)
        self._reports: Iterator[TaskReport] = iter(())
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        task, self._storage = new_config["task"], new_config.get("storage")
        if task is None:  # it was only to start
            self._reports = iter(())
        else:
            self._key, self._reports = task.key, self._worker.reports(new_config)
        return True

    def step(self) -> dict[str, Any]:
        report = next(self._reports, None)
        if report is None:
            return {"done": True}
        if self._storage and report.adapter:  # it goes there instead of through the driver's hands
            where, sweep = self._storage
            storage.write(where, sweep, self._key, report.adapter)
            report = replace(report, adapter=None, adapter_at=self._storage)
        return {"report": report, "done": report.is_last}

    def cleanup(self) -> None:
        if hasattr(self._reports, "close"):
            self._reports.close()  # a pruned trial's adapter comes off the base

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: state lives in the ledger. Without this method Tune would not reuse the worker."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: an interrupted trial goes on from its checkpoint in the adapter store."""
