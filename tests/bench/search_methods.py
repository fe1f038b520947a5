"""What the bench `search` compares: our driver, and the libraries' own objects as Ray Tune would call them."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from orchestrator import settings as settings_file
from orchestrator.driver.driver import Driver, Stop
from orchestrator.ledger import Ledger
from orchestrator.ledger.task import Task, TaskReport
from orchestrator.objectives import DEFAULT
from orchestrator.search.proposer import MAX_MODELLED, Proposer
from search_spaces import Space
from tests.bench.overhead import fake_comparison
from tests.bench.replay import Job, Method, Recorded, Row, Values
from tests.bench.search_peers import Moasha, ParetoRankMedian, Tpe
from trainables.values.results import Cost, Measurement
from trainables.values.workload import Workload

WORKLOAD = Workload(
    base_model="demo",
    base_folder="/nowhere",
    base_fingerprint="recorded",
    weights="demo",
    data="demo",
    data_folder="/nowhere",
    data_digest="recorded",
    compute_dtype="float32",
)
SHORT = 30
"""Trials that a sampler may be left with, where that is tried: as few as make a difference on the table."""
ETA = 2
"""Of every scheduler: the table's rungs are an eighth, a quarter, a half and all of the steps."""


class Listed:
    """Points in a given order, all at full budget."""

    def __init__(self, points: Iterator[Values]) -> None:
        self._points = points

    def ask(self, now: float) -> Job | None:
        values = next(self._points, None)
        return None if values is None else Job(values, None)

    def report(self, job: Job, row: Row | None, *, last: bool) -> bool:
        return True


class Ours:
    """The driver over a ledger; baselines included.

    Similarity is not recorded: every pair is told as similar enough.
    """

    def __init__(
        self,
        space: Space,
        n_workers: int,
        seed: int,
        folder: Path,
        max_modelled: int = MAX_MODELLED,
        method: str = "tpe",
        **asked: Any,
    ) -> None:
        """
        Args:
            asked: further fields of the settings.
        """
        values = {"n_trials": space.n_points, "seed": seed, **asked}
        self._settings = settings_file.make(
            name="replay",
            space=space.model_copy(update={"method": method}),
            base_model="demo",
            data="demo",
            device="cpu",
            **values,
        )
        self._now = 0.0
        self._ledger = Ledger(folder / "ledger.db")
        self._driver = Driver(
            self._settings,
            WORKLOAD,
            self._ledger,
            n_slots=n_workers,
            clock=lambda: self._now,
            proposer=Proposer(self._settings, max_modelled),
        )
        self._names = tuple(space.parameters)

    def ask(self, now: float) -> Job | None:
        self._now = now
        task = self._driver.next_task()
        if task is None:
            return None
        self._driver.began(task)
        entry = self._ledger.entry(task.key)
        is_point = task.kind == "train" and entry.result.is_of_search
        values = tuple(entry.params[name] for name in self._names) if is_point else None
        return Job(values, task, is_proposal=entry.result.origin == "search")

    def report(self, job: Job, row: Row | None, *, last: bool) -> bool:
        task, report = job.own, self._report(job.own, row, last)
        decision = self._driver.report(task, report)
        if not report.is_last and not isinstance(decision, Stop):
            return True
        self._driver.ended(task)
        entry = self._ledger.entry(task.key)
        return entry is not None and entry.result.state == "completed"

    def _report(self, task: Task, row: Row | None, last: bool) -> TaskReport:
        if row is not None and row["reason"]:
            return TaskReport(state="diverged", reason=row["reason"])
        found = {} if row is None else {"measurement": _of(Measurement, row), "cost": _of(Cost, row)}
        if not last:
            return TaskReport(state="running", **found)
        half = self._ledger.entry(WORKLOAD.key(task.config.at_other_precision))
        if row is None or (half is not None and half.result.state == "completed"):
            nf4 = task.config if task.config.precision == "nf4" else task.config.at_other_precision
            found["similarity"] = (WORKLOAD.key(nf4), fake_comparison())
        return TaskReport(state="completed", **found)


def _of(kind: type[Measurement | Cost], row: Row) -> Any:
    """What a row says of a rung, or of its trial's cost."""
    return kind(**{name: row[name] for name in kind.__dataclass_fields__ if name in row})


class RayStock:
    """Ray Tune's OptunaSearch over all objectives and its ASHAScheduler on held-out loss."""

    def __init__(self, space: Space, seed: int, max_steps: int, eta: float = ETA) -> None:
        objectives = list(DEFAULT)
        space_of = {name: parameter.in_optuna() for name, parameter in space.parameters.items()}
        self._searcher = OptunaSearch(space_of, metric=objectives, mode=["min"] * len(objectives), seed=seed)
        self._asha = ASHAScheduler(
            time_attr="step",
            metric="eval_loss_nats",
            mode="min",
            grace_period=-(-max_steps // 8),
            max_t=max_steps,
            reduction_factor=eta,
        )
        self._n_asked = 0

    def ask(self, now: float) -> Job | None:
        trial_id = f"t{self._n_asked}"
        self._n_asked += 1
        params = self._searcher.suggest(trial_id)
        trial = SimpleNamespace(trial_id=trial_id)
        self._asha.on_trial_add(None, trial)
        return Job(tuple(params.values()), trial)

    def report(self, job: Job, row: Row | None, *, last: bool) -> bool:
        trial, result = job.own, dict(row or {})
        if result["reason"]:
            self._searcher.on_trial_complete(trial.trial_id, None, error=True)
            return False
        self._searcher.on_trial_result(trial.trial_id, result)
        stop = last or self._asha.on_trial_result(None, trial, result) == TrialScheduler.STOP
        if stop:
            self._asha.on_trial_complete(None, trial, result)
            self._searcher.on_trial_complete(trial.trial_id, result)
        return last or not stop


class SyneTune:
    """Syne Tune's MOASHA (Schmucker et al. 2021), which draws points at random."""

    def __init__(self, space: Space, seed: int, max_steps: int, eta: float = ETA) -> None:
        from syne_tune.backend.trial_status import Trial
        from syne_tune.config_space import choice
        from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

        np.random.seed(seed)  # it draws from NumPy's global generator
        self._trial, self._n_asked = Trial, 0
        self._moasha = MOASHA(
            {name: choice(list(parameter.choices or ())) for name, parameter in space.parameters.items()},
            metrics=list(DEFAULT),
            time_attr="step",
            max_t=max_steps,
            grace_period=-(-max_steps // 8),
            reduction_factor=eta,
        )

    def ask(self, now: float) -> Job | None:
        params = self._moasha.suggest().config
        trial = self._trial(self._n_asked, params, datetime.now())
        self._n_asked += 1
        self._moasha.on_trial_add(trial)
        return Job(tuple(params.values()), trial)

    def report(self, job: Job, row: Row | None, *, last: bool) -> bool:
        result = dict(row or {})
        if result["reason"]:
            self._moasha.on_trial_error(job.own)
            return False
        if last:
            self._moasha.on_trial_complete(job.own, result)
            return True
        return self._moasha.on_trial_result(job.own, result) == "CONTINUE"


def _points(space: Space) -> list[Values]:
    return [tuple(point.values()) for point in space.grid()]


def _shuffled(space: Space, seed: int) -> Iterator[Values]:
    points = _points(space)
    Random(seed).shuffle(points)
    return iter(points)


Make = Callable[[Space, Recorded, int, int, Path], Method]
"""Space, table, workers, seed and an empty folder -> a method at its beginning."""

METHODS: Mapping[str, Make] = {
    "ours": lambda space, table, n_workers, seed, folder: Ours(space, n_workers, seed, folder),
    "short": lambda space, table, n_workers, seed, folder: Ours(space, n_workers, seed, folder, SHORT),
    "random": lambda space, table, n_workers, seed, folder: Listed(_shuffled(space, seed)),
    "grid": lambda space, table, n_workers, seed, folder: Listed(iter(_points(space))),
    "tpe": lambda space, table, n_workers, seed, folder: Tpe(space, seed),
    "multi-metric": lambda space, table, n_workers, seed, folder: Tpe(space, seed, ParetoRankMedian()),
    "moasha-rule": lambda space, table, n_workers, seed, folder: Moasha(space, seed),
    "ray": lambda space, table, n_workers, seed, folder: RayStock(space, seed, table.max_steps),
    "syne": lambda space, table, n_workers, seed, folder: SyneTune(space, seed, table.max_steps),
}
LABELS = {
    "ours": "qlora-sweep: TPE, hypervolume stop, baselines",
    "short": f"qlora-sweep, modelling {SHORT} to {2 * SHORT} trials",
    "random": "random without repeats, full budget",
    "grid": "grid, full budget",
    "tpe": "Optuna: TPE, full budget",
    "multi-metric": "the same with the multi-metric pruner's rule",
    "moasha-rule": "MOASHA's rule, points at random",
    "ray": "Ray Tune: OptunaSearch + ASHAScheduler",
    "syne": "Syne Tune: MOASHA",
}
"""Of the methods, and of MOASHA in strata, a stopping rule of ours that is gone: the recorded replay has it."""


def made(name: str, space: Space, table: Recorded, n_workers: int, seed: int, folder: Path) -> Method:
    """A method by name."""
    with warnings.catch_warnings(action="ignore"):
        return METHODS[name](space, table, n_workers, seed, folder)
