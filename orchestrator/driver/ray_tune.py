"""Ray Tune's four plug-ins: they decide nothing and forward to the driver.

Tune asks a scheduler about every result but the last of a trial, then shows the result to callbacks, then tells the
searcher of a trial's end. So the scheduler reports rungs to the driver, and the callback what a worker ended with.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.driver.driver import Driver, Stop
from orchestrator.ledger.task import Task, TaskFault, TaskReport
from orchestrator.workers.faults import fault_of, fault_of_trial
from orchestrator.workers.warm import Workers

REPORT = "report"
"""Key of the TaskReport in what Tune calls a result."""
TUNES_OWN = frozenset({"done", "training_iteration", "trial_id", "node_ip", "hostname", "pid"})
"""Of a result: what Tune itself still reads once it is recorded."""


def _itself(plug_in: Any, memo: dict) -> Any:
    """Tune copies its settings; the driver is one."""
    return plug_in


def _no_state(plug_in: Any) -> dict[str, Any]:
    """Tune's own snapshot is not used: the ledger is the state."""
    return {}


class TuneTasks:
    """The tasks that are Tune trials now, and the workers they run on; what the plug-ins share.

    Attributes:
        driver: there once `begin_sweep` was called.
        faults: why Tune gave a trial up, by its id, until the searcher asks.
    """

    driver: Driver

    def __init__(self, begin: Callable[[], tuple[Driver, Mapping[str, Any]]], workers: Workers) -> None:
        """
        Args:
            begin: called once, when workers start: the driver, and what every task's Tune config holds beside the task
                and its worker.
        """
        self._begin = begin
        self.workers = workers
        self.faults: dict[str, TaskFault] = {}
        self.shared: Mapping[str, Any] | None = None
        self._tasks: dict[str, Task] = {}

    @property
    def has_begun(self) -> bool:
        return self.shared is not None

    def begin_sweep(self) -> None:
        """Have the driver; raises what its beginning raises."""
        self.driver, self.shared = self._begin()

    def begin(self, trial_id: str, task: Task) -> None:
        self._tasks[trial_id] = task

    def task(self, trial_id: str) -> Task | None:
        return self._tasks.get(trial_id)

    def end(self, trial_id: str) -> Task | None:
        return self._tasks.pop(trial_id, None)


class TaskSearcher(Searcher):
    """Hands out the driver's tasks; before there is a driver, a start to each worker, that they import meanwhile."""

    __deepcopy__, __getstate__ = _itself, _no_state

    def __init__(self, tasks: TuneTasks, n_starts: int, start: Mapping[str, Any]) -> None:
        """
        Args:
            n_starts: workers that start before there is a task.
            start: what their Tune config holds beside the worker.
        """
        super().__init__()  # with a metric, Tune would end the sweep at the first report without it: a broken trial's
        self._tasks = tasks
        self._n_starts = n_starts
        self._start = dict(start)
        self._starting: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        workers = self._tasks.workers
        if not self._tasks.has_begun:
            if self._n_starts > 0:
                self._n_starts -= 1
                self._starting.add(trial_id)
                return {"task": None, "worker": workers.take(trial_id), **self._start}
            if not workers.are_asked_for():
                return None
            self._tasks.begin_sweep()
        if self._starting and not workers.has_idle:  # a task goes to one of these, not to one more
            return None
        task = self._tasks.driver.next_task()
        if task is None:
            workers.make_room()
            return Searcher.FINISHED if self._tasks.driver.is_over else None
        self._tasks.begin(trial_id, task)
        return {"task": task, "worker": workers.take(trial_id), **self._tasks.shared}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        task, fault = self._tasks.end(trial_id), self._tasks.faults.pop(trial_id, None)
        if task is None and trial_id not in self._starting:
            return
        self._starting.discard(trial_id)
        self._tasks.workers.give_back(trial_id, lost=error)
        if task is not None:
            self._tasks.driver.ended(task, (fault or fault_of(None)) if error else None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the state."""


class TaskScheduler(FIFOScheduler):
    """Asks the driver at each rung; shows Tune which workers stay."""

    __deepcopy__, __getstate__ = _itself, _no_state

    def __init__(self, tasks: TuneTasks) -> None:
        super().__init__()
        self._tasks = tasks

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._tasks.workers.keep(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._tasks.faults[trial.trial_id] = fault_of_trial(trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        task = self._tasks.task(trial.trial_id)
        if task is None or REPORT not in result:
            return TrialScheduler.CONTINUE
        decision = self._tasks.driver.report(task, result[REPORT])
        return TrialScheduler.STOP if isinstance(decision, Stop) else TrialScheduler.CONTINUE


class TaskStopper(Stopper):
    """Ends Tune when the driver has nothing more to do, though a worker that was to start may still have no place."""

    __deepcopy__, __getstate__ = _itself, _no_state

    def __init__(self, tasks: TuneTasks) -> None:
        self._tasks = tasks

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._tasks.has_begun and self._tasks.driver.is_over


class TaskCallback(Callback):
    """Reports what a worker ended with; of each last result, which Tune keeps, leaves it nothing but its own."""

    __deepcopy__, __getstate__ = _itself, _no_state

    def __init__(self, tasks: TuneTasks) -> None:
        self._tasks = tasks

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._tasks.workers.began(trial.trial_id)
        if task := self._tasks.task(trial.trial_id):
            self._tasks.driver.began(task)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
        report: TaskReport | None = result.get(REPORT)
        task = self._tasks.task(trial.trial_id)
        if task is not None and report is not None and report.is_last:
            self._tasks.driver.report(task, report)
        for name in result.keys() - TUNES_OWN:
            del result[name]

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Take from a trial that ended what Tune would keep of it to the end of the sweep and needs no more."""
        for kept in (trial.config, trial.evaluated_params, trial.metric_analysis, trial.metric_n_steps):
            kept.clear()
        trial.last_result.pop("experiment_tag", None)  # the config again, as text
