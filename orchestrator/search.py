"""What to run next: a Ray Searcher over an in-memory Optuna study.

The study is a projection of the ledger. Every trial that is settled is told once: completed with
all its objectives, anything else as pruned; a trial that broke, or whose similarity is too low,
violates a constraint (told as failed, TPE would go on asking around it).
"""

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from ray.tune.search import Searcher

from orchestrator.front import dissimilarity, losses_of
from orchestrator.ledger import Entry, Ledger
from orchestrator.pruning import Pruner
from orchestrator.settings import SweepSettings
from orchestrator.tune_trainable import Task
from search_spaces import Parameter
from trainables.config import TrialConfig, TrialResult, Workload

MAX_REPEATS = 50
"""Known points the sampler may propose in a row before an unknown one is drawn for it."""
BROKEN = 1.0
"""Constraint value of a trial that ended without usable figures."""


def distribution(parameter: Parameter) -> BaseDistribution:
    """Optuna's form of a searched setting."""
    if parameter.choices is not None:
        return CategoricalDistribution(parameter.choices)
    if parameter.distribution == "int_uniform":
        return IntDistribution(int(parameter.min or 0), int(parameter.max or 0))
    return FloatDistribution(
        parameter.min or 0.0, parameter.max or 0.0, log=parameter.distribution == "log_uniform_values"
    )


def is_within(dist: BaseDistribution, value: Any) -> bool:
    """Whether a value could have been drawn from a distribution."""
    if isinstance(dist, CategoricalDistribution):
        return value in dist.choices
    return dist._contains(dist.to_internal_repr(value))


def is_settled(trial: TrialResult, twin: TrialResult | None) -> bool:
    """Whether all that will be known of a trial is known.

    A completed 4-bit trial waits for its similarity, unless its twin ended without an adapter.
    """
    if trial.state in ("queued", "running"):
        return False
    if trial.state != "completed" or trial.config.precision == "16bit" or trial.similarity:
        return True
    return twin is not None and twin.state in ("refused", "oom", "diverged", "failed")


class Proposer:
    """Optuna behind two calls: `propose` a point that is not known, `tell` what became of a trial."""

    def __init__(self, settings: SweepSettings) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._settings = settings
        self._space = settings.space
        self._distributions = {name: distribution(p) for name, p in settings.space.parameters.items()}
        sampler = (
            optuna.samplers.TPESampler(seed=settings.seed, constant_liar=True)
            if self._space.method == "tpe"
            else optuna.samplers.RandomSampler(seed=settings.seed)
        )
        self.study = optuna.create_study(directions=["minimize"] * len(settings.objectives), sampler=sampler)
        self._asked: dict[str, optuna.Trial] = {}

    def propose(
        self, key_of: Callable[[Mapping[str, Any]], str], known: Callable[[str], bool]
    ) -> dict[str, Any] | None:
        """A point of the space whose trial is not known yet, or None when there is none left."""
        if self._space.method == "grid":
            return next((point for point in self._space.grid() if not known(key_of(point))), None)
        for _ in range(MAX_REPEATS):
            trial = self.study.ask(self._distributions)
            if not known(key_of(trial.params)):
                self._asked[key_of(trial.params)] = trial
                return trial.params
            self.study.tell(trial, state=TrialState.FAIL)
        if self._space.n_points is None:
            return None
        return next((point for point in self._space.grid() if not known(key_of(point))), None)

    def tell(self, entry: Entry) -> None:
        """Tell the study about a settled trial, whether it asked for it or not (a twin, a resumed sweep)."""
        trial = self._asked.pop(entry.result.key, None)
        if trial is None:
            within = all(is_within(dist, entry.params[name]) for name, dist in self._distributions.items())
            if not within or self._settings.config(dict(entry.params)) != entry.result.config:
                return  # a twin at a precision that is not searched
            self.study.enqueue_trial(dict(entry.params))
            trial = self.study.ask(self._distributions)
        trial.set_user_attr("key", entry.result.key)
        losses = losses_of(entry.result, self._settings.objectives)
        gap = dissimilarity(entry.result, self._settings.min_similarity)
        if entry.result.state == "completed" and losses is not None and gap is not None:
            trial.set_constraint("similarity", gap)
            self.study.tell(trial, losses)
        else:
            trial.set_constraint("similarity", 0.0 if entry.result.state == "pruned" else BROKEN)
            self.study.tell(trial, state=TrialState.PRUNED)


class SweepSearcher(Searcher):
    """Hands out tasks: interrupted trials, twins and comparisons first, then what the study proposes.

    What to do next follows from the ledger's rows alone, so a fresh one takes up any sweep.
    """

    def __init__(
        self,
        settings: SweepSettings,
        workload: Workload,
        ledger: Ledger,
        pruner: Pruner,
        *,
        n_slots: int,
        shared: Mapping[str, Any],
    ) -> None:
        """
        Args:
            n_slots: tasks at once.
            shared: what every task's Tune config holds beside the task.
        """
        super().__init__()  # with a metric, Tune would end the sweep at the first report without it: a broken trial's
        self._settings = settings
        self._workload = workload
        self._ledger = ledger
        self._pruner = pruner
        self._n_slots = n_slots
        self._shared = dict(shared)
        self._proposer = Proposer(settings)
        self._entries = {entry.result.key: entry for entry in ledger.entries()}
        self._told: set[str] = set()
        self._live: dict[str, Task] = {}
        self._incomparable: set[str] = set()
        self.finished = False
        for key in list(self._entries):
            self._settle(key)

    # --- Ray Tune's interface

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next task, None while there is none, FINISHED when there will be none."""
        if len(self._live) >= self._n_slots:
            return None
        task = self._next_task()
        if task is None:
            self.finished = not self._live
            return Searcher.FINISHED if self.finished else None
        if task.kind == "train":
            self._ledger.start(task.key)
            self._refresh(task.key)
        self._live[trial_id] = task
        return {"task": task.to_dict(), **self._shared}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A task ended; the recorder has written all it reported."""
        task = self._live.pop(trial_id, None)
        if task is None:
            return
        if error and task.kind == "train":
            self._ledger.finish(task.key, "failed", reason="its worker process was lost again and again")
        keys = {task.key, self._half(task.config)[0]}
        for key in keys:
            self._refresh(key)
        if task.kind == "compare" and not self._entries[task.key].result.similarity:
            self._incomparable.add(task.key)  # it failed once and would fail again
        for key in keys:
            self._settle(key)

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

    def _half(self, config: TrialConfig) -> tuple[str, TrialConfig]:
        """Key and config of the other precision's trial."""
        other = config.counterpart
        return self._workload.key(other), other

    def _settle(self, key: str) -> None:
        entry = self._entries.get(key)
        if entry is None or key in self._told:
            return
        twin = self._entries.get(self._half(entry.result.config)[0])
        if key in self._incomparable or is_settled(entry.result, twin.result if twin else None):
            self._told.add(key)
            self._proposer.tell(entry)
        elif entry.result.state == "completed" and twin:
            self._pruner.protected.add(twin.result.key)  # from now on it must not be stopped

    def _next_task(self) -> Task | None:
        queued = [e.result for e in self._entries.values() if e.result.state == "queued"]
        if queued:
            return self._train(min(queued, key=lambda trial: trial.number))
        for entry in [e for key, e in self._entries.items() if key not in self._told]:
            task = self._pair_task(entry)
            if task:
                return task
        n_taken = sum(entry.result.origin == "search" for entry in self._entries.values())
        if n_taken >= self._settings.n_trials:
            return None
        params = self._proposer.propose(self._key_of, self._entries.__contains__)
        if params is None:
            return None
        config = self._settings.config(params)
        key = self._workload.key(config)
        self._ledger.add(key, config, params=params, origin="search")
        self._refresh(key)
        return self._train(self._entries[key].result)

    def _key_of(self, params: Mapping[str, Any]) -> str:
        return self._workload.key(self._settings.config(dict(params)))

    def _train(self, trial: TrialResult) -> Task:
        if trial.origin == "twin":
            self._pruner.protected.add(trial.key)
        cost = self._ledger.cost(trial.config.cost_cell)
        return Task(kind="train", key=trial.key, config=trial.config, cost=cost)

    def _pair_task(self, entry: Entry) -> Task | None:
        """What brings a completed 4-bit trial nearer to its similarity: its twin, or the comparison."""
        trial = entry.result
        if trial.state != "completed" or trial.config.precision != "nf4" or trial.similarity:
            return None
        twin_key, twin_config = self._half(trial.config)
        twin = self._entries.get(twin_key)
        if twin is None:
            self._ledger.add(twin_key, twin_config, params=_twin_params(entry), origin="twin")
        elif twin.result.state == "pruned":
            self._ledger.requeue(twin_key)
            self._told.discard(twin_key)
            self._pruner.protected.add(twin_key)
        elif twin.result.state == "completed" and not any(live.key == trial.key for live in self._live.values()):
            return Task(kind="compare", key=trial.key, config=trial.config, twin_key=twin_key)
        else:
            return None
        self._refresh(twin_key)
        return self._train(self._entries[twin_key].result)


def _twin_params(entry: Entry) -> dict[str, Any]:
    return {**entry.params, **({"precision": "16bit"} if "precision" in entry.params else {})}
