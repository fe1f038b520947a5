"""A sweep's tasks under Ray Tune, from the first to the last.

It brings Ray Tune, so it is imported once settings and inputs are sound and the sweep has begun.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from orchestrator.cluster import heartbeat, ray_cluster
from orchestrator.cluster.node_watch import NodeVersionWatch
from orchestrator.driver.driver import Driver
from orchestrator.driver.ray_tune import TaskCallback, TaskScheduler, TaskSearcher, TaskStopper, TuneTasks
from orchestrator.driver.time_repeats import is_timed
from orchestrator.ledger import Ledger
from orchestrator.ledger.ownership import SCRATCH
from orchestrator.security import ray_guard
from orchestrator.workers import adapter_server, checkpoints, node_inputs, warm
from orchestrator.workers.tune_trainable import SweepTrainable
from trainables.values.errors import DiskFull, SweepError

if TYPE_CHECKING:
    from orchestrator.driver.ready import Begun
    from orchestrator.settings import SweepSettings
    from trainables.values.workload import Workload

LOST_SOON = "the Ray cluster was lost before the sweep had begun; once it is back, run the same again"


def run_tasks(
    settings: "SweepSettings", folder: Path, begin: Callable[[], "Begun"], trainable: type | None, resume_with: str
) -> Driver:
    """Let Ray Tune run until the driver has nothing more to do, or it is interrupted.

    Args:
        folder: of the sweep.
        begin: called once, when workers start and import what they need.
        trainable: does the tasks in place of SweepTrainable; such workers do not start before there is a task.
        resume_with: the command that goes on, for who loses the cluster.
    Raises:
        KeyboardInterrupt: before `begin` had ended.
        DiskFull, SweepError: what ended it from outside, and what `begin` raises.
    """
    watch = NodeVersionWatch() if settings.address else None
    looked, avoided = (watch.looked, watch.avoided) if watch else (list, ())
    slots = ray_cluster.Slots(lambda silent: ray_cluster.n_slots(settings, {*silent, *looked()}))
    start = {"device": settings.device, "versions": watch.here if watch else None}

    begin_with_secrets = ray_guard.with_cloud_secrets(begin)

    def driver_of_sweep() -> tuple[Driver, dict[str, Any]]:
        begun = begin_with_secrets()
        driver = Driver(begun.settings, begun.workload, begun.ledger, n_slots=slots, **begun.known)
        return driver, start | _shared(begun.settings, begun.workload, folder)

    tasks = TuneTasks(driver_of_sweep, warm.Workers(settings.resources, avoided, lost=slots.one_lost))
    searcher = TaskSearcher(tasks, 0 if trainable else min(slots(), settings.n_trials), start)
    scratch = (folder / SCRATCH).resolve()
    tuner = _tuner(tasks, searcher, trainable or SweepTrainable, scratch)
    try:
        _fit(tuner, folder / "ledger.db", f"the Ray cluster was lost; once it is back: {resume_with}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # never read again: the ledger is the state
    if not tasks.has_begun:
        tasks.workers.end()
        raise KeyboardInterrupt
    return tasks.driver


def _shared(settings: "SweepSettings", workload: "Workload", folder: Path) -> dict[str, Any]:
    """What every task's Tune config holds beside the task, its worker and what that started with."""
    return {
        "workload": asdict(workload),
        "is_timed": is_timed(settings),
        "adapter_store": adapter_server.serve(folder / "adapters", folder / checkpoints.FOLDER),
        "inputs": node_inputs.serve(workload) if settings.address else None,
        "storage": (settings.storage, settings.name) if settings.storage else None,
    }


def _tuner(tasks: TuneTasks, searcher: TaskSearcher, trainable: type, scratch: Path) -> tune.Tuner:
    return tune.Tuner(
        tune.with_resources(trainable, warm.resources_of),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=TaskScheduler(tasks),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda t: t.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            callbacks=[TaskCallback(tasks)],
            stop=TaskStopper(tasks),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=0),  # the driver decides what is tried again
            verbose=0,
            progress_reporter=tune.CLIReporter(),  # says nothing so; a notebook's would clear what its cell shows
        ),
    )


def _close(ledger_path: Path) -> None:
    """Have what is in the ledger's log written into the file itself, if the sweep has one yet."""
    if ledger_path.exists():
        Ledger(ledger_path).close()


def _fit(tuner: tune.Tuner, ledger_path: Path, lost: str) -> None:
    """Let Tune run under the watch over Ray.

    Raises:
        DiskFull, SweepError: see run_tasks.
    """
    try:
        with (
            heartbeat.watched(lost, last_act=partial(_close, ledger_path)) as heart,
            ray_guard.keep_cloud_secrets(),
        ):
            tuner.fit()
    except KeyboardInterrupt:
        pass
    except tune.TuneError as error:
        cause = error.__cause__ or error
        if isinstance(cause, SweepError):
            raise cause from None
        if "no space left" in str(cause).lower():  # Tune hands on no more than the text of what its callbacks raise
            raise DiskFull(f"no space left for {ledger_path.parent}; free some and resume") from None
        raise SweepError(f"Ray Tune stopped: {' '.join(str(cause).split())}") from error
    if heart.lost:
        raise SweepError(lost if ledger_path.exists() else LOST_SOON)
