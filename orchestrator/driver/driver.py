"""What runs next and when a trial ends: every decision of a sweep, over its ledger and a clock that is handed in.

Nothing here knows of Ray: `ray_tune.py` forwards to it, and a test is a loop over `next_task`, `report` and `ended`.
Tasks come in this order: interrupted trials, baselines and comparisons first, then what the sampler proposes; when
nothing more is proposed and all candidates are settled, runs of the finalists and of their baselines under other
seeds, and at last evaluations on the test rows. What to do next follows from the ledger's rows alone, so a fresh
driver takes up any sweep.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.analysis.budgets import FINISHED, Ended
from orchestrator.analysis.finalists import to_evaluate, wanted
from orchestrator.analysis.front import is_candidate
from orchestrator.analysis.settled import is_settled
from orchestrator.driver.pairs import baseline_params, evaluation_task
from orchestrator.driver.retries import Retries, too_many
from orchestrator.driver.reuse import CachedTrials, import_result
from orchestrator.driver.stopping import Clock, Stopping
from orchestrator.ledger import Ledger
from orchestrator.ledger.rows import Entry
from orchestrator.ledger.task import Fault, Report, Task, TaskName
from orchestrator.pruning.rule import StoppingRule, rule_of
from orchestrator.search.device_limit import DeviceLimit
from orchestrator.search.proposer import Proposer
from orchestrator.security.redaction import redacted
from orchestrator.settings import SweepSettings
from orchestrator.workers import adapter_store, checkpoints, storage
from trainables.models.families import shape_in
from trainables.values.config import Origin, TrialConfig, Workload
from trainables.values.results import TrialResult


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

    Attributes:
        finished: there is nothing more to do.
        stopped: why the sweep gave itself up; None where it did not.
    """

    def __init__(
        self,
        settings: SweepSettings,
        workload: Workload,
        ledger: Ledger,
        *,
        n_slots: int | Callable[[], int],
        cached: CachedTrials | None = None,
        learned: Sequence[Entry] = (),
        clock: Clock = time.monotonic,
        proposer: Proposer | None = None,
        rule: StoppingRule | None = None,
    ) -> None:
        """
        Args:
            ledger: adapters and checkpoints lie beside it.
            n_slots: tasks at once; asked before every task where nodes come and go.
            cached: completed trials of other sweeps by key, whose results are imported.
            learned: trials of another sweep that the sampler begins with.
            clock: seconds since some moment.
            proposer, rule: in place of those that the settings ask for.
        """
        self._settings = settings
        self._workload = workload
        self._ledger = ledger
        self._adapters = ledger.path.parent / "adapters"
        self._checkpoints = ledger.path.parent / checkpoints.FOLDER
        self._n_slots = n_slots if callable(n_slots) else lambda: n_slots
        self._cached = cached or {}
        self._proposer = proposer or Proposer(settings)
        self._rule = rule or rule_of(settings.space.early_terminate, settings.longest_steps, settings.objectives)
        self._stopping = Stopping(settings, ledger, self._n_slots, clock)
        self._retries = Retries(clock)
        self._limit = DeviceLimit(
            shape=shape_in(Path(workload.base_folder)),
            memory_mib=ledger.fact("device_memory_mib"),
            compute_dtype=workload.compute_dtype,
        )
        self._entries = {entry.result.key: entry for entry in ledger.entries()}
        self._open = dict.fromkeys(self._entries)  # keys of trials that are not settled yet
        self._protected: set[str] = set()  # keys of trials that others need: never stopped
        self._live: dict[TaskName, Task] = {}
        self._failed: set[TaskName] = set()  # comparisons and test evaluations that would fail again
        self._n_ended = self._n_failed = 0  # since this driver began: what was wrong before may be mended
        self.finished = False
        self.stopped: str | None = None
        for entry in learned:
            self._proposer.learn(entry, self._limit.excess(entry.result.config))
        for key, entry in list(self._entries.items()):
            if entry.result.is_of_search:
                self._rule.learn(entry.result)
            self._settle(key)

    # --- the three questions

    def next_task(self) -> Task | None:
        """What a free worker does now; None where there is nothing now, or, once `finished`, any more."""
        task = None
        if self.stopped is None and len(self._live) < self._n_slots():
            with self._ledger.together():
                task = self._first_task()
                if task and task.kind == "train":
                    self._keep(self._ledger.start(task.key))
        if task is None:
            self.finished = self.stopped is None and not self._live and not self._retries.waiting
            if self.finished:
                self._ledger.set_fact(FINISHED, True)
            return None
        self._retries.handed_out(task.name)
        self._live[task.name] = task
        self._stopping.task_handed_out(task.name)
        return task

    def began(self, task: Task) -> None:
        """A worker has taken the task up: from now on it spends its device's time."""
        self._stopping.task_began(task.name)

    def report(self, task: Task, report: Report) -> Decision:
        """Write what a worker reports into the ledger, and say whether its task goes on."""
        if task.kind == "train":
            decision = self._trial_reported(task, report)
        else:
            self._keep(self._ledger.set_fault(task.kind, task.key, report.reason and redacted(report.reason)))
            decision = Continue()
        if report.similarity and self._is_completed(report.similarity[0]):
            self._keep(self._ledger.set_similarity(*report.similarity))
        if report.test_evaluation:
            self._keep(self._ledger.set_test_evaluation(task.key, report.test_evaluation))
        self._stopping.keep_spent()
        return decision

    def ended(self, task: Task, fault: Fault | None = None) -> None:
        """The task is over, all that it reported is written.

        Args:
            fault: why it was given up from outside; None where it came to its own end.
        """
        del self._live[task.name]
        if fault is not None and self._is_tried_again(task, fault):
            return
        trial = self._result(task.key)
        if task.kind == "train":
            self._count(trial)
        is_done = {"train": True, "compare": trial.similarity, "evaluate": trial.test_evaluation}[task.kind]
        if not is_done:
            self._failed.add(task.name)
        self._settle_pair(task.config)
        completed = task.kind == "train" and trial.state == "completed"
        self._stopping.task_ended(task.name, lambda: self._trials, completed=completed)

    @property
    def is_over(self) -> bool:
        """Whether no task will come any more, be it that the sweep gave itself up."""
        return self.finished or (self.stopped is not None and not self._live)

    @property
    def waits(self) -> bool:
        """Whether a lost task is still to be tried again."""
        return self._retries.waiting

    # --- what a report comes to

    def _trial_reported(self, task: Task, report: Report) -> Decision:
        cost, measurement = report.cost, report.measurement
        if cost:
            self._ledger.keep_cost(task.config.cost_key, cost, of=task.key)
        if measurement:
            self._keep(self._ledger.record(task.key, measurement))
        if not report.is_last:
            if measurement is None or cost is None:
                return Continue()
            may_stop = task.key not in self._protected
            why = self._rule.at_rung(task.key, measurement, cost, may_stop=may_stop)
            if why is None:
                return Continue()
            self._finish(task, "pruned", why, report)
            return Stop(why)
        if report.state == "completed" and measurement and cost and self._result(task.key).is_of_search:
            needs_baseline = task.config.precision == "nf4" and report.similarity is None
            may_stop = needs_baseline and task.key not in self._protected
            why = self._rule.at_end(task.key, measurement, cost, may_stop=may_stop)
            if why is not None:
                self._finish(task, "pruned", why, report)
                return Continue()
        self._finish(task, report.state, report.reason and redacted(report.reason), report)
        return Continue()

    def _finish(self, task: Task, state: Any, reason: str | None, report: Report) -> None:
        """Keep a trial's adapter, if it completed, and its end."""
        digest = None
        if state == "completed":
            files = report.adapter
            if report.adapter_at:  # the sweep's folder keeps a copy, for export, MLflow and verify
                files = storage.read(*report.adapter_at, task.key)
            digest = adapter_store.write(self._adapters, task.key, files) if files else None
        entry = self._ledger.finish(
            task.key,
            state,
            reason=reason,
            environment=report.environment,
            adapter_sha256=digest,
            train_seconds=report.train_seconds,
        )
        self._keep(entry)
        checkpoints.discard(self._checkpoints, task.key)

    def _is_tried_again(self, task: Task, fault: Fault) -> bool:
        """Requeue a task that was given up from outside, or fail its trial or evaluation after the last retry."""
        if self._retries.again(task.name, fault):
            if task.kind == "train":
                self._keep(self._ledger.requeue(task.key))
            self._stopping.task_ended(task.name, lambda: self._trials, completed=False)
            return True
        n_lost = self._retries.n_lost(task.name)
        reason = redacted(fault.text) + (f", the {n_lost}rd time" if n_lost == 3 else "")
        if task.kind == "train":
            self._keep(self._ledger.finish(task.key, "failed", reason=reason))
        else:
            self._keep(self._ledger.set_fault(task.kind, task.key, reason))
        return False

    def _count(self, trial: TrialResult) -> None:
        """Stop the sweep where too many trials fail for no reason of their own."""
        self._n_ended += 1
        self._n_failed += trial.state == "failed"
        if self.stopped is None and too_many(self._n_failed, self._n_ended):
            self.stopped = f"{self._n_failed} of {self._n_ended} trials failed; the last because {trial.reason}"

    # --- what follows from the rows

    def _keep(self, entry: Entry) -> None:
        """Take in a row as the ledger has it now."""
        self._entries[entry.result.key] = entry

    def _result(self, key: str) -> TrialResult:
        return self._entries[key].result

    @property
    def _trials(self) -> list[TrialResult]:
        return [entry.result for entry in self._entries.values()]

    def _is_completed(self, key: str) -> bool:
        """False where a trial's adapter is all that a killed driver left of it."""
        return key in self._entries and self._result(key).state == "completed"

    def _other_half(self, config: TrialConfig) -> tuple[str, TrialConfig]:
        """Key and config of the other precision's trial."""
        other = config.at_other_precision
        return self._workload.key(other), other

    def _settle_pair(self, config: TrialConfig) -> None:
        self._settle(self._workload.key(config))
        self._settle(self._other_half(config)[0])

    def _settle(self, key: str) -> None:
        """Tell the sampler of a trial of which all is known that will be; protect the baseline of one that waits."""
        entry = self._entries.get(key)
        if entry is None or key not in self._open:
            return
        baseline = self._entries.get(self._other_half(entry.result.config)[0])
        if ("compare", key) in self._failed or is_settled(entry.result, baseline.result if baseline else None):
            del self._open[key]
            if entry.result.is_of_search:
                self._proposer.tell(entry, self._limit.excess(entry.result.config))
        elif entry.result.state == "completed" and baseline:
            self._protected.add(baseline.result.key)  # from now on it must not be stopped

    # --- which task is first

    def _first_task(self) -> Task | None:
        """The first task there is; trials that need none, as they are refused or cached, are passed on the way."""
        while True:
            n_before = len(self._entries)
            task = self._task()
            if task or len(self._entries) == n_before:
                return task

    def _task(self) -> Task | None:
        unsettled = [self._entries[key] for key in self._open]
        queued = [entry.result for entry in unsettled if entry.result.state == "queued"]
        queued = [trial for trial in queued if self._retries.is_due(("train", trial.key))]
        if queued:
            return self._train(min(queued, key=lambda trial: trial.number))
        for entry in unsettled:
            task = self._pair_task(entry)
            if task:
                return task
        if self._stopping.ended is None:
            return self._search_task()
        return None if self._open else self._finalist_task()

    def _search_task(self) -> Task | None:
        trials = self._trials
        ended = self._stopping.why_end(trials)
        params = None if ended else self._proposer.propose(self._key_of, self._entries.__contains__)
        if params is not None:
            return self._first_run(self._add(self._settings.config(params), params, "search"))
        self._stopping.end_search(ended or Ended(why="space", text="the whole space was tried"), trials)
        return self._task()

    def _first_run(self, trial: TrialResult) -> Task | None:
        """Train a new trial; None where it cannot fit the device and so is refused, or is known from another sweep."""
        reason = self._limit.refusal(trial.config)
        if reason is not None:
            self._keep(self._ledger.finish(trial.key, "refused", reason=reason))
        elif not self._import(trial):
            return self._train(trial)
        self._settle_pair(trial.config)
        return None

    def _import(self, trial: TrialResult) -> bool:
        """Import a trial's result from another sweep; of the second half of a pair with their similarity."""
        cached = self._cached.get(trial.key)
        if cached is None or not import_result(self._ledger, self._adapters, cached):
            return False
        self._keep(self._ledger.entry(trial.key))
        half, _ = self._other_half(trial.config)
        nf4 = trial.key if trial.config.precision == "nf4" else half
        similarity = self._cached[nf4].entry.result.similarity if nf4 in self._cached else None
        if similarity and half in self._entries and self._is_completed(half):
            self._keep(self._ledger.set_similarity(nf4, similarity))
        self._settle_pair(trial.config)
        return True

    def _add(self, config: TrialConfig, params: Mapping[str, Any], origin: Origin) -> TrialResult:
        key = self._workload.key(config)
        self._keep(self._ledger.add(key, config, params=params, origin=origin))
        self._open[key] = None
        return self._result(key)

    def _finalist_task(self) -> Task | None:
        """All candidates are settled: a run under another seed, or, when there are none to come, a test evaluation.

        All runs are queued at once, before any starts, so that what a run is called never depends on which was first.
        """
        trials = self._trials
        new = [run for run in wanted(trials, self._settings) if self._workload.key(run.config) not in self._entries]
        if new and not self._stopping.is_spent():
            added = [self._add(run.config, {}, run.origin) for run in new]
            left = [trial for trial in added if not self._import(trial)]
            return self._train(min(left, key=lambda trial: trial.number)) if left else None
        busy = {task.key for task in self._live.values()}
        for trial in to_evaluate(trials, self._settings):
            name = ("evaluate", trial.key)
            is_open = trial.test_evaluation is None and trial.key not in busy and name not in self._failed
            if is_open and self._retries.is_due(name):
                baseline = self._entries.get(self._other_half(trial.config)[0])
                n_seeds = self._settings.baseline_seeds
                return evaluation_task(trial, baseline.result if baseline else None, trials, n_seeds)
        return None

    def _key_of(self, params: Mapping[str, Any]) -> str:
        return self._workload.key(self._settings.config(dict(params)))

    def _train(self, trial: TrialResult) -> Task:
        if trial.origin != "search":
            self._protected.add(trial.key)
        costs = self._ledger.costs(trial.config.cost_key)
        return Task(kind="train", key=trial.key, config=trial.config, costs=costs)

    def _pair_task(self, entry: Entry) -> Task | None:
        """What brings a completed 4-bit trial nearer to its similarity: its baseline, or the comparison."""
        trial = entry.result
        if trial.state != "completed" or trial.config.precision != "nf4" or trial.similarity:
            return None
        key, config = self._other_half(trial.config)
        baseline = self._entries.get(key)
        if baseline is None:
            if is_candidate(trial):
                return self._first_run(self._add(config, baseline_params(entry), "baseline"))
            return self._first_run(self._add(config, {}, "baseline replicate"))
        if baseline.result.state == "pruned":
            self._keep(self._ledger.requeue(key))
            self._open[key] = None
            self._protected.add(key)
            return self._train(self._result(key))
        is_free = not any(live.key == trial.key for live in self._live.values())
        if baseline.result.state == "completed" and is_free and self._retries.is_due(("compare", trial.key)):
            return Task(kind="compare", key=trial.key, config=trial.config, baseline_key=key)
        return None
