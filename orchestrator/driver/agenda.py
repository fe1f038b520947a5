"""Which task is first, by a sweep's rows alone, so that a fresh driver takes up any sweep.

Interrupted trials, baselines and comparisons come first, then what the sampler proposes; once all candidates are
settled, runs of finalists under other seeds, and an evaluation as soon as all runs that it takes have ended.
"""

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.budgets import Ended
from orchestrator.analysis.finalists import to_evaluate, wanted
from orchestrator.analysis.front import is_candidate
from orchestrator.analysis.settled import is_settled
from orchestrator.driver import time_repeats
from orchestrator.driver.feedback import Asynchronous
from orchestrator.driver.in_order import InOrder
from orchestrator.driver.pairs import baseline_params, evaluation_task, is_ready
from orchestrator.driver.reuse import import_result, rungs_asked
from orchestrator.ledger.task import Task, TaskName
from orchestrator.search.device_limit import DeviceLimit
from trainables.models.families import shape_in

if TYPE_CHECKING:
    from orchestrator.driver.feedback import Feedback
    from orchestrator.driver.retries import Retries
    from orchestrator.driver.reuse import CachedTrials
    from orchestrator.driver.stopping import Stopping
    from orchestrator.ledger import Ledger
    from orchestrator.ledger.rows import Entry
    from orchestrator.pruning.rule import StoppingRule
    from orchestrator.search.proposer import Proposer
    from orchestrator.settings import SweepSettings
    from trainables.values.config import Origin, TrialConfig
    from trainables.values.results import TrialResult
    from trainables.values.workload import Workload


class Agenda:
    """A sweep's rows as its ledger has them, and the first task that they ask for; arguments as of `Driver`.

    Attributes:
        live: tasks that workers have now, by name.
        failed: comparisons and test evaluations that would fail again.
        protected: keys of trials that others need: never stopped.
        proposer: the sampler.
        feedback: what it and the stopping rule learn of the rows, and when.
    """

    def __init__(
        self,
        settings: "SweepSettings",
        workload: "Workload",
        ledger: "Ledger",
        retries: "Retries",
        stopping: "Stopping",
        proposer: "Proposer",
        rule: "StoppingRule",
        *,
        lag: int | None,
        cached: "CachedTrials",
        learned: Sequence["Entry"],
    ) -> None:
        """`lag` is that of orchestrator.driver.in_order; None lets results be learned as they come."""
        self._settings = settings
        self._workload = workload
        self._ledger = ledger
        self._retries = retries
        self._stopping = stopping
        self._cached = cached
        shape, memory_mib = shape_in(Path(workload.base_folder)), ledger.fact("device_memory_mib")
        self._limit = DeviceLimit(shape=shape, memory_mib=memory_mib, compute_dtype=workload.compute_dtype)
        self.proposer = proposer
        self.live: dict[TaskName, Task] = {}
        self.failed: set[TaskName] = set()
        self.protected: set[str] = set()
        self._entries = {entry.result.key: entry for entry in ledger.entries()}
        self._n_changes = 0  # of rows, and tasks that ended, since this driver began
        self._n_idle: int | None = None  # as many as when no finalist could be evaluated
        self._open = dict.fromkeys(self._entries)  # keys of trials that are not settled yet
        self.feedback: Feedback = Asynchronous(proposer, rule, self, stopping.fix_reference)
        if lag is not None:
            self.feedback = InOrder(lag, settings, ledger, proposer, rule, self, stopping.fix_reference)
        self._take_up(learned)

    def _take_up(self, learned: Sequence["Entry"]) -> None:
        """Learn from another sweep, and from what this one has done before."""
        for entry in learned:
            self.proposer.learn(entry, self.excess(entry.result.config))
        for key in self._entries:
            self._settle(key)
        self.feedback.take_up()
        if self._stopping.ended and not self._open:
            self.feedback.end()

    # --- the rows

    def keep(self, entry: "Entry") -> None:
        """Take in a row as the ledger has it now."""
        self._entries[entry.result.key] = entry
        self._n_changes += 1

    def ended(self, task: Task) -> None:
        """A worker has done with a task, or lost it."""
        del self.live[task.name]
        self._n_changes += 1

    def result(self, key: str) -> "TrialResult":
        return self._entries[key].result

    @property
    def trials(self) -> "list[TrialResult]":
        """By number."""
        return sorted((entry.result for entry in self._entries.values()), key=attrgetter("number"))

    @property
    def entries(self) -> "Iterable[Entry]":
        return self._entries.values()

    def entry(self, key: str) -> "Entry | None":
        return self._entries.get(key)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def is_open(self, key: str) -> bool:
        """Whether anything is still to come of a trial."""
        return key in self._open

    def excess(self, config: "TrialConfig") -> float | None:
        return self._limit.excess(config)

    def key_of(self, params: Mapping[str, Any]) -> str:
        return self._workload.key(self._settings.config(dict(params)))

    def other_half(self, config: "TrialConfig") -> str:
        """Key of the other precision's trial."""
        return self._workload.key(config.at_other_precision)

    def is_completed(self, key: str) -> bool:
        """False where a trial's adapter is all that a killed driver left of it."""
        return key in self._entries and self.result(key).state == "completed"

    def settle_pair(self, config: "TrialConfig") -> None:
        self._settle(self._workload.key(config))
        for key in self._other_halves(config):
            self._settle(key)

    def _other_halves(self, config: "TrialConfig") -> list[str]:
        """Keys of a 4-bit trial's baseline, or of the unsettled 4-bit trials that a 16-bit one is the baseline of."""
        if config.precision == "nf4":
            return [self.other_half(config)]
        configs = {key: self._entries[key].result.config for key in self._open}
        nf4 = {key: other for key, other in configs.items() if other.precision == "nf4"}
        return [key for key, other in nf4.items() if other.at_other_precision == config]

    def _settle(self, key: str) -> None:
        """Close a trial of which all is known that will be; protect the baseline of one that waits."""
        entry = self._entries.get(key)
        if entry is None or key not in self._open:
            return
        baseline = self._entries.get(self.other_half(entry.result.config))
        if ("compare", key) in self.failed or is_settled(entry.result, baseline.result if baseline else None):
            del self._open[key]
            if entry.result.is_of_search:
                self.feedback.settled(entry)
        elif entry.result.state == "completed" and baseline:
            self.protected.add(baseline.result.key)  # from now on it must not be stopped

    # --- which task is first

    def first_task(self) -> Task | None:
        """The first task there is; trials that need none, as they are refused or cached, are passed on the way."""
        while True:
            n_before = self._n_changes
            task = self._task()
            if task or self._n_changes == n_before:
                return task

    def _task(self) -> Task | None:
        unsettled = list(map(self._entries.__getitem__, self._open))
        is_searching = self._stopping.ended is None or any(entry.result.is_of_search for entry in unsettled)
        if not is_searching and (task := self._finalist_task()):
            return task
        queued = [entry.result for entry in unsettled if entry.result.state == "queued"]
        due = [trial for trial in queued if self._retries.is_due(("train", trial.key))]
        run = min(due, key=attrgetter("number"), default=None)
        if run and is_searching:
            return self._train(run)
        if task := next(filter(None, map(self._pair_task, unsettled)), None):  # later on evaluations wait for these
            return task
        if run:
            return self._train(run)
        return self._search_task() if self._stopping.ended is None else None

    def _search_task(self) -> Task | None:
        trials = self.trials
        ended = self._stopping.why_full(trials)
        if ended is None and not self.feedback.is_ready():
            return None
        ended = ended or self._stopping.why_end(trials, self.feedback.seen)
        params = None if ended else self.feedback.propose()
        if params is not None:
            trial = self._add(self._settings.config(params), params, "search")
            self.feedback.took(trial)
            return self._first_run(trial)
        self._stopping.end_search(ended or Ended(why="space", text="the whole space was tried"))
        return self._task()

    def _first_run(self, trial: "TrialResult") -> Task | None:
        """Train a new trial; None where it cannot fit the device and so is refused, or is known from another sweep."""
        reason = self._limit.refusal(trial.config)
        if reason is not None:
            self.keep(self._ledger.finish(trial.key, "refused", reason=reason))
        elif not self._import(trial):
            return self._train(trial)
        self.settle_pair(trial.config)
        return None

    def _import(self, trial: "TrialResult") -> bool:
        """Import a trial's result from another sweep; of the second half of a pair with their similarity."""
        cached = self._cached.get(trial.key)
        why_stop = None if trial.key in self.protected else self.feedback.why_stop_import
        if not cached or not import_result(self._ledger, cached, why_stop, rungs_asked(self._settings, trial.rungs)):
            return False
        self.keep(self._ledger.entry(trial.key))
        for half in self._other_halves(trial.config):
            nf4 = trial.key if trial.config.precision == "nf4" else half
            similarity = self._cached[nf4].entry.result.similarity if nf4 in self._cached else None
            if similarity and self.is_completed(half) and self.is_completed(trial.key):
                self.keep(self._ledger.set_similarity(nf4, similarity))
        self.settle_pair(trial.config)
        return True

    def _add(self, config: "TrialConfig", params: Mapping[str, Any], origin: "Origin") -> "TrialResult":
        key = self._workload.key(config)
        number = self.feedback.number(key, origin)
        self.keep(self._ledger.add(key, config, params=params, origin=origin, number=number))
        self._open[key] = None
        return self.result(key)

    def _finalist_task(self) -> Task | None:
        """All candidates are settled: an evaluation that waits for no run any more, or else the first new run.

        All runs are queued at once, before any starts, so that what a run is called never depends on which was first.
        """
        if self._n_idle == self._n_changes and not self._retries.waiting:
            return None
        self.feedback.end()
        self._stopping.fix_reference(self.feedback.seen, 1)
        trials, task = self.trials, None
        new = [run for run in wanted(trials, self._settings) if self._workload.key(run.config) not in self._entries]
        if not new or self._stopping.is_spent():
            task = self._evaluation(trials)
        elif not self._open:
            added = [self._add(run.config, {}, run.origin) for run in new]
            left = [trial for trial in added if not self._import(trial)]
            task = self._train(min(left, key=attrgetter("number"))) if left else None
        self._n_idle = self._n_changes if self._open and not task else None
        return task

    def _evaluation(self, trials: "list[TrialResult]") -> Task | None:
        """On the test rows, of the first finalist that has none and all of whose runs have ended."""
        busy, to_come = {key for _, key in self.live}, [self.result(key) for key in self._open]
        for trial in to_evaluate(trials, self._settings):
            name = ("evaluate", trial.key)
            is_open = trial.test_evaluation is None and trial.key not in busy and name not in self.failed
            if is_open and self._retries.is_due(name) and is_ready(trial, to_come):
                half = self._entries.get(self.other_half(trial.config))
                return evaluation_task(trial, half and half.result, trials, self._settings.baseline_seeds)
        return None

    def _train(self, trial: "TrialResult") -> Task:
        if trial.origin != "search":
            self.protected.add(trial.key)
        again = time_repeats.is_due(trial, self._settings, self._ledger)
        costs = () if again else self._ledger.costs(trial.config.cost_key)
        return Task(kind="train", key=trial.key, config=trial.config, costs=costs, rungs=trial.rungs)

    def _pair_task(self, entry: "Entry") -> Task | None:
        """What brings a completed 4-bit trial nearer to its similarity: its baseline, or the comparison."""
        trial = entry.result
        if trial.state != "completed" or trial.config.precision != "nf4" or trial.similarity:
            return None
        key = self.other_half(trial.config)
        baseline = self._entries.get(key)
        if baseline is None:
            said = (baseline_params(entry), "baseline") if is_candidate(trial) else ({}, "baseline replicate")
            return self._first_run(self._add(trial.config.at_other_precision, *said))
        if baseline.result.state == "pruned":
            self.feedback.needed(baseline.result)
            self.keep(self._ledger.requeue(key))
            self._open[key] = None
            self.protected.add(key)
            return self._first_run(self.result(key))
        is_free = trial.key not in {key for _, key in self.live}
        if baseline.result.state == "completed" and is_free and self._retries.is_due(("compare", trial.key)):
            return Task(kind="compare", key=trial.key, config=trial.config, baseline_key=key)
        return None
