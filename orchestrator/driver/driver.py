"""What runs next and when a trial ends: every decision of a sweep, over its ledger and a clock that is handed in.

Nothing here knows of Ray: `ray_tune.py` forwards to it, and a test is a loop over `next_task`, `report` and `ended`.
Which task is first says `agenda.py`, from the ledger's rows alone, so that a fresh driver takes up any sweep.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.analysis.budgets import FINISHED
from orchestrator.driver import time_repeats
from orchestrator.driver.agenda import Agenda
from orchestrator.driver.in_order import lag_of
from orchestrator.driver.retries import Retries, too_many
from orchestrator.driver.stopping import Stopping
from orchestrator.ledger import adapter_store
from orchestrator.pruning.rule import rule_of
from orchestrator.search.proposer import Proposer
from orchestrator.security.redaction import redacted
from orchestrator.workers import checkpoints, storage

if TYPE_CHECKING:
    from orchestrator.driver.reuse import CachedTrials
    from orchestrator.driver.stopping import Clock
    from orchestrator.ledger import Ledger
    from orchestrator.ledger.rows import Entry
    from orchestrator.ledger.task import Task, TaskFault, TaskReport
    from orchestrator.pruning.rule import StoppingRule
    from orchestrator.settings import SweepSettings
    from trainables.values.config import State
    from trainables.values.results import TrialResult
    from trainables.values.workload import Workload


@dataclass(frozen=True, slots=True)
class Continue:
    """The task goes on."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The trial ends here.

    Attributes:
        reason: a sentence, as the ledger has it.
    """

    reason: str


Decision = Continue | Stop


class Driver:
    """One sweep's decisions.

    Args:
        ledger: adapters and checkpoints lie beside it.
        n_slots: tasks at once; asked before every task where nodes come and go.
        cached: completed trials of other sweeps by key, whose results are imported.
        learned: trials of another sweep that the sampler begins with.
        clock: seconds since some moment.
        proposer, rule: in place of those that the settings ask for.

    Attributes:
        agenda: the sweep's trials, and which task is first.
        finished: there is nothing more to do.
        stopped: why the sweep gave itself up; None where it did not.
    """

    def __init__(
        self,
        settings: "SweepSettings",
        workload: "Workload",
        ledger: "Ledger",
        *,
        n_slots: int | Callable[[], int],
        cached: "CachedTrials | None" = None,
        learned: "Sequence[Entry]" = (),
        clock: "Clock" = time.monotonic,
        proposer: Proposer | None = None,
        rule: "StoppingRule | None" = None,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._n_slots = n_slots if callable(n_slots) else lambda: n_slots
        self._retries = Retries(clock)
        self._stopping = Stopping(settings, ledger, self._n_slots, clock)
        rule = rule or rule_of(settings.space.early_terminate, settings.longest_steps, settings.objectives)
        known = {"lag": lag_of(settings, ledger, self._n_slots()), "cached": cached or {}, "learned": learned}
        proposer = proposer or Proposer(settings)
        self.agenda = Agenda(settings, workload, ledger, self._retries, self._stopping, proposer, rule, **known)
        self._n_ended = self._n_failed = 0  # since this driver began: what was wrong before may be mended
        self.finished = False
        self.stopped: str | None = None

    @property
    def ledger(self) -> "Ledger":
        """Of the sweep, still open."""
        return self._ledger

    # --- the three questions

    def next_task(self) -> "Task | None":
        """What a free worker does now; None where there is nothing now, or, once `finished`, any more."""
        task = None
        if self.stopped is None and len(self.agenda.live) < self._n_slots():
            with self._ledger.together():
                task = self.agenda.first_task()
                if task and task.kind == "train":
                    self.agenda.keep(self._ledger.start(task.key))
        if task is None:
            self.finished = self.stopped is None and not self.agenda.live and not self._retries.waiting
            if self.finished:
                self._ledger.set_fact(FINISHED, True)
            return None
        self._retries.handed_out(task.name)
        self.agenda.live[task.name] = task
        self._stopping.task_handed_out(task.name)
        return task

    def began(self, task: "Task") -> None:
        """A worker has taken the task up: from now on it spends its device's time."""
        self._stopping.task_began(task.name)

    def report(self, task: "Task", report: "TaskReport") -> Decision:
        """Write what a worker reports into the ledger, and say whether its task goes on."""
        if task.kind == "train":
            decision = self._trial_reported(task, report)
        else:
            self.agenda.keep(self._ledger.set_fault(task.kind, task.key, report.reason and redacted(report.reason)))
            decision = Continue()
        if report.similarity and self.agenda.is_completed(report.similarity[0]):
            self.agenda.keep(self._ledger.set_similarity(*report.similarity))
        if report.test_evaluation:
            self.agenda.keep(self._ledger.set_test_evaluation(task.key, report.test_evaluation))
        if report.spans:
            self._ledger.keep_spans(report.spans)
        self._stopping.keep_spent()
        return decision

    def ended(self, task: "Task", fault: "TaskFault | None" = None) -> None:
        """The task is over, all that it reported is written.

        Args:
            fault: why it was given up from outside; None where it came to its own end.
        """
        self.agenda.ended(task)
        if fault is not None and self._is_tried_again(task, fault):
            return
        trial = self.agenda.result(task.key)
        if task.kind == "train":
            self._count(trial)
        is_done = {"train": True, "compare": trial.similarity, "evaluate": trial.test_evaluation}[task.kind]
        if not is_done:
            self.agenda.failed.add(task.name)
        self.agenda.settle_pair(task.config)
        self._stopping.task_ended(task.name, completed=task.kind == "train" and trial.state == "completed")

    @property
    def is_over(self) -> bool:
        """Whether no task will come any more, be it that the sweep gave itself up."""
        return self.finished or (self.stopped is not None and not self.agenda.live)

    @property
    def waits(self) -> bool:
        """Whether a lost task is still to be tried again."""
        return self._retries.waiting

    # --- what a report comes to

    def _trial_reported(self, task: "Task", report: "TaskReport") -> Decision:
        cost, measurement = report.cost, report.measurement
        if cost:
            measured, cost = cost, self._ledger.keep_cost(task.config.cost_key, cost, of=task.key)
            time_repeats.keep(task.config.cost_key, measured, cost, self._settings, self._ledger)
        if measurement:
            self.agenda.keep(self._ledger.record(task.key, measurement))
        if not report.is_last:
            if measurement is None or cost is None:
                return Continue()
            may_stop = task.key not in self.agenda.protected
            trial = self.agenda.result(task.key)
            why = self.agenda.feedback.why_stop(trial, measurement, cost, is_last=False, may_stop=may_stop)
            if why is None:
                return Continue()
            self._finish(task, "pruned", why, report)
            return Stop(why)
        trial = self.agenda.result(task.key)
        if report.state == "completed" and measurement and cost and trial.is_of_search:
            needs_baseline = task.config.precision == "nf4" and report.similarity is None
            may_stop = needs_baseline and task.key not in self.agenda.protected
            why = self.agenda.feedback.why_stop(trial, measurement, cost, is_last=True, may_stop=may_stop)
            if why is not None:
                self._finish(task, "pruned", why, report)
                return Continue()
        self._finish(task, report.state, report.reason and redacted(report.reason), report)
        return Continue()

    def _finish(self, task: "Task", state: "State", reason: str | None, report: "TaskReport") -> None:
        """Keep a trial's adapter, if it completed, and its end."""
        digest = None
        if state == "completed":
            files = report.adapter
            if report.adapter_at:  # the sweep's folder keeps a copy, for export, MLflow and verify
                files = storage.read(*report.adapter_at, task.key)
            digest = adapter_store.write(self._ledger.path.parent / "adapters", task.key, files) if files else None
        entry = self._ledger.finish(
            task.key,
            state,
            reason=reason,
            environment=report.environment,
            adapter_sha256=digest,
            train_seconds=report.train_seconds,
        )
        self.agenda.keep(entry)
        checkpoints.discard(self._ledger.path.parent / checkpoints.FOLDER, task.key)

    def _is_tried_again(self, task: "Task", fault: "TaskFault") -> bool:
        """Requeue a task that was given up from outside, or fail its trial or evaluation after the last retry."""
        if self._retries.again(task.name, fault):
            if task.kind == "train":
                self.agenda.keep(self._ledger.requeue(task.key))
            self._stopping.task_ended(task.name, completed=False)
            return True
        n_lost = self._retries.n_lost(task.name)
        reason = redacted(fault.text) + (f", the {n_lost}rd time" if n_lost == 3 else "")
        if task.kind == "train":
            self.agenda.keep(self._ledger.finish(task.key, "failed", reason=reason))
        else:
            self.agenda.keep(self._ledger.set_fault(task.kind, task.key, reason))
        return False

    def _count(self, trial: "TrialResult") -> None:
        """Stop the sweep where too many trials fail for no reason of their own."""
        self._n_ended += 1
        self._n_failed += trial.state == "failed"
        if self.stopped is None and too_many(self._n_failed, self._n_ended):
            self.stopped = f"{self._n_failed} of {self._n_ended} trials failed; the last because {trial.reason}"
