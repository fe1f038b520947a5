"""What to run next, as a Ray Searcher: the search itself, then the seed replicates of what it found."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from orchestrator.analysis.budgets import FINISHED, Ended
from orchestrator.analysis.finalists import to_evaluate, wanted
from orchestrator.analysis.front import is_candidate
from orchestrator.driver.pairs import baseline_params, evaluation_task, is_settled
from orchestrator.driver.reuse import CachedTrials, import_result
from orchestrator.driver.scheduler import Pruner
from orchestrator.driver.stopping import Clock, Stopping
from orchestrator.ledger import Ledger
from orchestrator.ledger.rows import Entry
from orchestrator.search.device_limit import DeviceLimit
from orchestrator.search.proposer import Proposer
from orchestrator.settings import SweepSettings
from orchestrator.workers.faults import Retries, too_many
from orchestrator.workers.tune_trainable import Task
from orchestrator.workers.warm import Workers
from trainables.models.families import shape_in
from trainables.values.config import Origin, TrialConfig, Workload
from trainables.values.results import TrialResult


class SweepSearcher(Searcher):
    """Hands out tasks: interrupted trials, baselines and comparisons first, then what the study proposes.

    When nothing more is proposed and all candidates are settled come the seed replicates: runs of the finalists and of
    their baselines under other seeds, and when those are settled too, test evaluations on the test rows.
    What to do next follows from the ledger's rows alone, so a fresh one takes up any sweep.
    """

    def __init__(
        self,
        settings: SweepSettings,
        workload: Workload,
        ledger: Ledger,
        pruner: Pruner,
        *,
        n_slots: int | Callable[[], int],
        shared: Mapping[str, Any],
        workers: Workers | None = None,
        elsewhere: CachedTrials | None = None,
        learned: Sequence[Entry] = (),
        clock: Clock = time.monotonic,
        proposer: Proposer | None = None,
    ) -> None:
        """
        Args:
            n_slots: tasks at once; asked before every task where nodes come and go.
            shared: what every task's Tune config holds beside the task and its worker.
            workers: that tasks go to; by default such as the settings ask for.
            elsewhere: trials of other sweeps by key, whose results are taken over.
            learned: trials of another sweep that the sampler begins with.
            proposer: a new one with another history than usual; by default the usual one.
        """
        super().__init__()  # with a metric, Tune would end the sweep at the first report without it: a broken trial's
        self._settings = settings
        self._workload = workload
        self._ledger = ledger
        self._pruner = pruner
        self._n_slots = n_slots if callable(n_slots) else lambda: n_slots
        self._shared = dict(shared)
        self._workers = workers or Workers(settings.resources)
        self._proposer = proposer or Proposer(settings)
        self._entries = {entry.result.key: entry for entry in ledger.entries()}
        self._open = dict.fromkeys(self._entries)  # keys of trials that are not settled yet
        self._live: dict[str, Task] = {}
        self._failed: set[tuple[str, str]] = (
            set()
        )  # kind and key of comparisons and test evaluations that would fail again
        self._cached = elsewhere or {}
        self._stopping = Stopping(settings, ledger, self._n_slots, clock)
        self._limit = DeviceLimit(
            shape=shape_in(Path(workload.base_folder)),
            memory_mib=ledger.fact("device_memory_mib"),
            compute_dtype=workload.compute_dtype,
        )
        self._retries = Retries(clock)
        self._n_ended = self._n_failed = 0  # since this driver began: what was wrong before may be mended
        self.finished = False
        self.stopped: str | None = None
        for entry in learned:
            self._proposer.learn(entry, self._limit.excess(entry.result.config))
        for key, entry in list(self._entries.items()):
            if entry.result.is_of_search:
                pruner.learn(entry.result)
            self._settle(key)

    # --- Ray Tune's interface

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next task, None while there is none, FINISHED when there will be none."""
        if self.stopped and not self._live:
            return Searcher.FINISHED
        with self._ledger.together():
            task = None if self.stopped or len(self._live) >= self._n_slots() else self._next_task()
            if task and task.kind == "train":
                self._ledger.start(task.key)
                self._refresh(task.key)
        if task is None:
            self._workers.make_room()
            self.finished = not self._live and not self._retries.waiting
            if self.finished:
                self._ledger.set_fact(FINISHED, True)
            return Searcher.FINISHED if self.finished else None
        self._retries.handed_out((task.kind, task.key))
        self._live[trial_id] = task
        self._stopping.task_handed_out(trial_id)
        return {"task": task.to_dict(), "worker": self._workers.take(trial_id), **self._shared}

    def began(self, trial_id: str) -> None:
        """A worker has taken up the task: from now on it spends its device's time."""
        self._workers.began(trial_id)
        self._stopping.task_began(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A task ended; the recorder has written all it reported."""
        task = self._live.pop(trial_id, None)
        if task is None:
            return
        self._workers.give_back(trial_id, lost=error)
        if error and self._is_tried_again(trial_id, task):
            return
        keys = {task.key, self._half(task.config)[0]}
        for key in keys:
            self._refresh(key)
        done = {
            "train": True,
            "compare": self._result(task.key).similarity,
            "evaluate": self._result(task.key).test_evaluation,
        }
        if task.kind == "train":
            self._count(self._result(task.key))
        if not done[task.kind]:
            self._failed.add((task.kind, task.key))
        for key in keys:
            self._settle(key)
        completed = task.kind == "train" and self._result(task.key).state == "completed"
        self._stopping.task_ended(trial_id, lambda: self._trials, completed=completed)

    def _is_tried_again(self, trial_id: str, task: Task) -> bool:
        """What becomes of a task that Ray gave up: queued once more, or its trial or evaluation failed."""
        name, fault = (task.kind, task.key), self._pruner.fault(trial_id)
        if self._retries.again(name, fault):
            if task.kind == "train":
                self._ledger.requeue(task.key)
                self._refresh(task.key)
            self._stopping.task_ended(trial_id, lambda: self._trials, completed=False)
            return True
        n_lost = self._retries.n_lost(name)
        reason = fault.text + (f", the {n_lost}rd time" if n_lost == 3 else "")
        if task.kind == "train":
            self._ledger.finish(task.key, "failed", reason=reason)
        else:
            self._ledger.set_fault(task.kind, task.key, reason)
        return False

    def _count(self, trial: TrialResult) -> None:
        """Stop the sweep where too many trials fail for no reason of their own."""
        self._n_ended += 1
        self._n_failed += trial.state == "failed"
        if self.stopped is None and too_many(self._n_failed, self._n_ended):
            self.stopped = f"{self._n_failed} of {self._n_ended} trials failed; the last because {trial.reason}"

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the state."""

    def __deepcopy__(self, memo: dict) -> "SweepSearcher":
        return self  # Tune copies its settings; the ledger is one

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune's own snapshot is not used

    # --- what follows from the rows

    def _refresh(self, key: str) -> None:
        entry = self._ledger.entry(key)
        if entry:
            self._entries[key] = entry

    def _result(self, key: str) -> TrialResult:
        return self._entries[key].result

    @property
    def _trials(self) -> list[TrialResult]:
        return [entry.result for entry in self._entries.values()]

    def _half(self, config: TrialConfig) -> tuple[str, TrialConfig]:
        """Key and config of the other precision's trial."""
        other = config.at_other_precision
        return self._workload.key(other), other

    def _settle(self, key: str) -> None:
        entry = self._entries.get(key)
        if entry is None or key not in self._open:
            return
        baseline = self._entries.get(self._half(entry.result.config)[0])
        if ("compare", key) in self._failed or is_settled(entry.result, baseline.result if baseline else None):
            del self._open[key]
            if entry.result.is_of_search:
                self._proposer.tell(entry, self._limit.excess(entry.result.config))
        elif entry.result.state == "completed" and baseline:
            self._pruner.protected.add(baseline.result.key)  # from now on it must not be stopped

    def _next_task(self) -> Task | None:
        """The first task there is; trials that need none, as they are refused or known, are passed on the way."""
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
        """Train a new trial; None where it cannot fit the device and so is refused, or is known from elsewhere."""
        reason = self._limit.refusal(trial.config)
        if reason is not None:
            self._ledger.finish(trial.key, "refused", reason=reason)
        elif not self._reuse(trial):
            return self._train(trial)
        self._refresh(trial.key)
        for key in (trial.key, self._half(trial.config)[0]):
            self._settle(key)
        return None

    def _reuse(self, trial: TrialResult) -> bool:
        """Take a trial's result over from another sweep; of the second half of a pair with their similarity."""
        known = self._cached.get(trial.key)
        if known is None or not import_result(self._ledger, self._ledger.path.parent / "adapters", known):
            return False
        self._refresh(trial.key)
        half, _ = self._half(trial.config)
        nf4 = trial.key if trial.config.precision == "nf4" else half
        similarity = self._cached[nf4].entry.result.similarity if nf4 in self._cached else None
        if similarity and half in self._entries and self._result(half).state == "completed":
            self._ledger.set_similarity(nf4, similarity)
            self._refresh(nf4)
        for key in (trial.key, half):
            self._settle(key)
        return True

    def _add(self, config: TrialConfig, params: Mapping[str, Any], origin: Origin) -> TrialResult:
        key = self._workload.key(config)
        self._ledger.add(key, config, params=params, origin=origin)
        self._open[key] = None
        self._refresh(key)
        return self._result(key)

    def _finalist_task(self) -> Task | None:
        """All candidates are settled: a run under another seed, or, when there are none to come, a test_evaluation.

        All runs are queued at once, before any starts, so that what a run is called never depends on which was first.
        """
        trials = self._trials
        new = [run for run in wanted(trials, self._settings) if self._workload.key(run.config) not in self._entries]
        if new and not self._stopping.is_spent():
            added = [self._add(run.config, {}, run.origin) for run in new]
            left = [trial for trial in added if not self._reuse(trial)]
            return self._train(min(left, key=lambda trial: trial.number)) if left else None
        busy = {task.key for task in self._live.values()}
        for trial in to_evaluate(trials, self._settings):
            open_ = (
                trial.test_evaluation is None and trial.key not in busy and ("evaluate", trial.key) not in self._failed
            )
            if open_ and self._retries.is_due(("evaluate", trial.key)):
                baseline = self._entries.get(self._half(trial.config)[0])
                return evaluation_task(
                    trial, baseline.result if baseline else None, trials, self._settings.baseline_seeds
                )
        return None

    def _key_of(self, params: Mapping[str, Any]) -> str:
        return self._workload.key(self._settings.config(dict(params)))

    def _train(self, trial: TrialResult) -> Task:
        if trial.origin != "search":
            self._pruner.protected.add(trial.key)
        costs = self._ledger.costs(trial.config.cost_key)
        return Task(kind="train", key=trial.key, config=trial.config, costs=costs)

    def _pair_task(self, entry: Entry) -> Task | None:
        """What brings a completed 4-bit trial nearer to its similarity: its baseline, or the comparison."""
        trial = entry.result
        if trial.state != "completed" or trial.config.precision != "nf4" or trial.similarity:
            return None
        baseline_key, baseline_config = self._half(trial.config)
        baseline = self._entries.get(baseline_key)
        if baseline is None:
            if is_candidate(trial):
                return self._first_run(self._add(baseline_config, baseline_params(entry), "baseline"))
            return self._first_run(self._add(baseline_config, {}, "baseline replicate"))
        if baseline.result.state == "pruned":
            self._ledger.requeue(baseline_key)
            self._open[baseline_key] = None
            self._pruner.protected.add(baseline_key)
            self._refresh(baseline_key)
            return self._train(self._result(baseline_key))
        is_free = not any(live.key == trial.key for live in self._live.values())
        if baseline.result.state == "completed" and is_free and self._retries.is_due(("compare", trial.key)):
            return Task(kind="compare", key=trial.key, config=trial.config, baseline_key=baseline_key)
        return None
