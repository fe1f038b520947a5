"""SweepSettings -> Tuner -> SweepSnapshot: the whole life of one sweep on the driver."""

import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import settings as settings_file
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.ledger import Ledger
from orchestrator.ledger.ownership import owned
from orchestrator.ledger.schema import ID_FILE
from orchestrator.security.folder_access import narrowed, refuse_shared
from orchestrator.settings import SweepSettings, sweep_folder
from orchestrator.settings.command import command
from orchestrator.workers import checkpoints
from trainables.values.config import Workload
from trainables.values.errors import ConfigError, DiskFull, SweepError
from trainables.values.files import write_whole

if TYPE_CHECKING:
    from orchestrator.driver.driver import Driver


Prepare = Callable[[SweepSettings, Path], tuple[Workload, dict[str, int], float | None]]


def run(
    settings: SweepSettings,
    root: Path,
    *,
    resume: bool,
    started: Callable[[Ledger, Workload], None],
    trainable: type | None = None,
    prepare: Prepare | None = None,
) -> SweepSnapshot:
    """Run a sweep to its end, or until it is interrupted.

    Args:
        root: folder of all state, see orchestrator.settings.ROOT.
        resume: go on with the sweep of that name; otherwise the name must be new.
        started: called once when everything is ready and trials are about to start.
        trainable: does the tasks in place of SweepTrainable.
        prepare: connects to Ray and brings the inputs in place of orchestrator.driver.prepare.
    Raises:
        SweepError: with the exit code of its kind.
    """
    folder = sweep_folder(settings.name, root)
    if resume and folder.exists():
        refuse_shared(folder, root)
    with narrowed(root), owned(folder):
        known = (folder / "ledger.db").exists()
        if known and not resume:
            raise ConfigError(
                f"NAME: sweep {settings.name!r} exists; choose another NAME, or go on with it: "
                f"{command()} resume {settings.name}"
            )
        if known:
            _refuse_edited(settings, folder)  # a damaged ledger is said too, before anything is begun
        if prepare is None:
            from orchestrator.driver.prepare import prepare

        workload, counts, memory_mib = prepare(settings, root)
        from orchestrator.driver import reuse, warm_start  # after what finds bad input, which should not wait for them

        settings_file.save(settings, folder)
        ledger = Ledger(folder / "ledger.db")
        try:
            _note_start(ledger, workload, counts, folder / ID_FILE)
            ledger.set_fact(settings_file.ASKED, settings.model_dump_json())
            ledger.set_fact("device_memory_mib", memory_mib)
            ledger.requeue_running()
            _forget_checkpoints(ledger, folder)
            learned = warm_start.entries(settings, workload, root)
            cached = reuse.cached_trials(root, settings.name, workload, settings) if settings.reuse else {}
            started(ledger, workload)
            known = {"learned": learned, "cached": cached}
            driver = _tune(settings, workload, ledger, folder, trainable, known)
            ledger.requeue_running()
            _forget_checkpoints(ledger, folder)
            snapshot = SweepSnapshot.of(settings, ledger)
            return replace(snapshot, interrupted=not driver.finished, stopped=driver.stopped)
        finally:
            ledger.close()


def _refuse_edited(settings: SweepSettings, folder: Path) -> None:
    """Refuse to go on under other settings than those that the sweep began with.

    Raises:
        ConfigError: names the first field that differs.
    """
    ledger = Ledger(folder / "ledger.db", read_only=True)
    began = ledger.fact(settings_file.ASKED)
    ledger.close()
    for name, then, now in settings_file.edits(settings, began):
        raise ConfigError(
            f"{folder / 'settings.json'}: {name} is {now!r}, but the sweep began with {then!r}; bring it back with "
            f"`qlora-sweep verify {settings.name} --repair`, or start under a new NAME"
        )


def _note_start(ledger: Ledger, workload: Workload, counts: dict[str, int], id_file: Path) -> None:
    """Keep what the sweep is about, and beside the ledger its name, by which a new one is told from an emptied one.

    Raises:
        ConfigError: the ledger holds trials on another base model, data set or arithmetic.
    """
    before = ledger.workload()
    if before is None:
        ledger.set_fact("id", uuid.uuid4().hex)
        ledger.set_fact("created_at", time.time())
    else:
        for name in ("base_fingerprint", "data_digest", "compute_dtype"):
            if getattr(before, name) != getattr(workload, name):
                raise ConfigError(
                    f"{name} has changed since this sweep began; its trials cannot be compared with new ones"
                )
    ledger.set_fact("workload", asdict(workload))
    ledger.set_fact("data_counts", counts)
    write_whole(id_file, ledger.fact("id"))


def _forget_checkpoints(ledger: Ledger, folder: Path) -> None:
    """Of trials that have ended: what came in after their end, or before a driver was killed at it."""
    checkpoints.keep_only(folder / checkpoints.FOLDER, {t.key for t in ledger.trials() if t.state == "queued"})


def _tune(
    settings: SweepSettings,
    workload: Workload,
    ledger: Ledger,
    folder: Path,
    trainable: type | None,
    known: Mapping[str, Any],
) -> "Driver":
    """Let Ray Tune run until the driver has nothing more to do, or it is interrupted."""
    from ray import tune

    from orchestrator.cluster import heartbeat, ray_cluster
    from orchestrator.cluster.node_watch import NodeVersionWatch
    from orchestrator.driver.driver import Driver
    from orchestrator.driver.ray_tune import TaskCallback, TaskScheduler, TaskSearcher, TuneTasks
    from orchestrator.security import ray_guard
    from orchestrator.workers import adapter_server, node_inputs, warm
    from orchestrator.workers.tune_trainable import SweepTrainable

    store = adapter_server.serve(folder / "adapters", folder / checkpoints.FOLDER)
    shared = {"workload": asdict(workload), "device": settings.device, "adapter_store": store}
    joined = NodeVersionWatch() if settings.address else None
    shared |= joined.shared() if joined else {}
    shared |= {"inputs": node_inputs.serve(workload) if settings.address else None}
    shared |= {"storage": (settings.storage, settings.name) if settings.storage else None}
    slots = ray_cluster.Slots(
        lambda silent: ray_cluster.n_slots(settings, {*silent, *(joined.looked() if joined else ())})
    )
    workers = warm.Workers(settings.resources, joined.avoided if joined else (), lost=slots.one_lost)
    driver = Driver(settings, workload, ledger, n_slots=slots, **known)
    tasks = TuneTasks(driver, workers)
    scratch = (folder / "ray").resolve()
    tuner = tune.Tuner(
        tune.with_resources(trainable or SweepTrainable, warm.resources_of),
        tune_config=tune.TuneConfig(
            search_alg=TaskSearcher(tasks, shared),
            scheduler=TaskScheduler(tasks),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda t: t.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            callbacks=[TaskCallback(tasks)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=0),  # the driver decides what is tried again
            verbose=0,
        ),
    )
    lost = f"the Ray cluster was lost; once it is back: {command()} resume {settings.name}"
    try:
        with (
            heartbeat.watched(lost, last_act=lambda: Ledger(ledger.path).close()) as heart,
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
            raise DiskFull(f"no space left for {folder}; free some and resume") from None
        raise SweepError(f"Ray Tune stopped: {' '.join(str(cause).split())}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # never read again: the ledger is the state
    if heart.lost:
        raise SweepError(lost)
    return driver
