"""What a worker does: a task in, one TaskReport a rung out.

It brings PyTorch and all else that trials need, so a worker imports it once its node's versions are known to fit.
"""

import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import datasets  # noqa: F401  # what reads rows
import ray
import torch
import transformers
from ray.exceptions import RayError

from orchestrator.analysis.host_memory import PEAK_RESIDENT
from orchestrator.ledger.task import TaskReport
from orchestrator.workers import node_inputs
from trainables.comparison.compare import compare, evaluate_on_test
from trainables.cost.device import device_name, environment, is_lost, own_peak_mib
from trainables.cost.memory import oom_as_failure
from trainables.cost.timeline import Timeline
from trainables.trial import Trial
from trainables.values.config import canonical_json
from trainables.values.errors import DeviceLost, TrialFailed
from trainables.values.workload import Workload
from trainables.worker_cache import WorkerCache, prepare

if TYPE_CHECKING:
    from subprocess import Popen

    from orchestrator.ledger.task import Task
    from trainables.cost.timeline import WorkerPhase
    from trainables.values.checkpoint import Checkpoint
    from trainables.values.config import State
    from trainables.values.findings import Comparison, TestEvaluation

Finding = TypeVar("Finding", "Comparison", "TestEvaluation")


WORTH_KEEPING_SECONDS = 2.0
"""Of training, which a checkpoint (three times an adapter's size) is written for."""


class Worker:
    """One process on one device; the base model and the tokens stay between its tasks."""

    def __init__(self, device: str, timeline: Timeline, compiling: "Popen | None" = None) -> None:
        """
        Args:
            device: "cuda" or "cpu".
            compiling: see orchestrator.workers.compiling.
            timeline: of this process.
        """
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        if device == "cpu":
            torch.set_num_threads(1)  # one core a trial
        self._compiler = prepare(device, after=compiling)
        self._device = device
        self._timeline = timeline
        self._cache: WorkerCache | None = None

    def reports(self, config: Mapping[str, Any]) -> Iterator[TaskReport]:
        """What becomes of the task in a Tune config; the last report says what this worker did since the one before.

        Raises:
            DeviceLost: the device is of no more use to this process.
            RayError: the cluster's fault, not the trial's: orchestrator.workers.faults decides.
        """
        process = f"worker {config['worker']['number']}"
        with closing(self._reports(config)) as reports:
            for report in reports:
                yield replace(report, spans=self._timeline.take(process)) if report.is_last else report

    def _reports(self, config: Mapping[str, Any]) -> Generator[TaskReport]:
        task, store = config["task"], config["adapter_store"]
        try:
            if self._cache is None:
                workload = node_inputs.here(Workload(**config["workload"]), config.get("inputs"))
                is_timed = config.get("is_timed", True)
                known = {"is_timed": is_timed, "compiler": self._compiler}
                self._cache = WorkerCache(workload, self._device, self._timeline, **known)
            work = {"train": _train, "compare": _compare, "evaluate": _evaluate}[task.kind]
            yield from work(self._cache, task, store)
        except TrialFailed as error:
            yield _failed(self._cache, error)
        except RayError:
            raise
        except Exception as error:
            traceback.print_exc()
            self._cache = None  # of unknown state now
            if is_lost(self._device):
                raise DeviceLost(f"{type(error).__name__}: {error}") from None
            yield TaskReport(state="failed", reason=f"{type(error).__name__}: {error}")


def _failed(cache: WorkerCache, error: TrialFailed) -> TaskReport:
    """The last report of a task that failed; for lack of memory no later one shall fail beside full weights."""
    if error.state == "oom":
        cache.drop_full_weights()
    return _end(cache, error.state, reason=str(error))


def _end(cache: WorkerCache, state: "State", **values: Any) -> TaskReport:
    """A last report, with what the task ran on."""
    workload = cache.workload
    facts = {"compute_dtype": workload.compute_dtype, "weights": workload.weights, **values.pop("notes", {})}
    facts[PEAK_RESIDENT] = str(own_peak_mib())
    return TaskReport(state=state, environment=environment(cache.device) | facts, **values)


def _train(cache: WorkerCache, task: "Task", store: Any) -> Iterator[TaskReport]:
    before: Checkpoint | None = ray.get(store.checkpoint.remote(task.key))
    start = perf_counter() - (before.seconds if before else 0.0)
    here = device_name(cache.device)
    cost = next((cost for cost in task.costs if cost.device == here), None)
    trial = Trial(task.config, cache, cost=cost, checkpoint=before)
    writing: list[Any] = []
    kept_at = perf_counter()

    def keep(step: int) -> None:
        """Write a checkpoint, where it is worth it."""
        nonlocal kept_at
        is_behind = writing and not ray.wait(writing, timeout=0)[0]  # such a disk gets no more to do
        if perf_counter() - kept_at >= WORTH_KEEPING_SECONDS and not is_behind:
            kept_at = perf_counter()
            checkpoint = trial.checkpoint(step, seconds=kept_at - start)
            writing[:] = [store.keep.remote(checkpoint)]  # not waited for: it may be lost, training goes on

    try:
        for measurement in trial.measurements(task.rungs, keep):
            last = {"measurement": measurement, "cost": trial.cost}
            if measurement.step < task.config.max_steps:
                yield TaskReport(state="running", **last)
                keep(measurement.step)
        files = trial.adapter_files()
    finally:
        trial.close()
    last |= {"adapter": files, "train_seconds": perf_counter() - start}
    notes = {"fallback": f"eager engine: {trial.fallback}"} if trial.fallback else {}
    if before and before.step:
        notes["continued_from_step"] = str(before.step)
    similarity = _pair_similarity(cache, task, store, files)
    yield _end(cache, "completed", notes=notes, similarity=similarity, **last)


def _pair_similarity(
    cache: WorkerCache, task: "Task", store: Any, files: Mapping[str, bytes]
) -> "tuple[str, Comparison] | None":
    """The second half of a pair measures it; None for the first, and where that fails: the training was sound, and the
    driver asks for the comparison once more."""
    half = cache.workload.key(task.config.at_other_precision)
    other_files = ray.get(store.read.remote(half))
    if other_files is None:
        return None
    nf4 = task.config.precision == "nf4"
    try:
        if nf4:
            similarity = _compared(cache, task.config.keep_16bit, nf4=files, baseline=other_files)
        else:
            similarity = _compared(cache, (), nf4=other_files, baseline=files)
    except Exception:
        traceback.print_exc()
        return None
    return task.key if nf4 else half, similarity


def _compare(cache: WorkerCache, task: "Task", store: Any) -> Iterator[TaskReport]:
    nf4, baseline = _adapters(store, task.key, task.baseline_key)
    similarity = _compared(cache, task.config.keep_16bit, nf4=nf4, baseline=baseline)
    yield _end(cache, "completed", similarity=(task.key, similarity))


def _evaluate(cache: WorkerCache, task: "Task", store: Any) -> Iterator[TaskReport]:
    files, *replicates = _adapters(store, task.key, *task.replicate_keys)
    baseline = _adapters(store, task.baseline_key)[0] if task.baseline_key else None
    given = {"files": files, "baseline": baseline, "replicates": replicates}
    test_evaluation = _found(cache, "test evaluation", partial(evaluate_on_test, cache, task.config, **given))
    yield _end(cache, "completed", test_evaluation=test_evaluation)


def _compared(
    cache: WorkerCache, keep_16bit: tuple[str, ...], *, nf4: Mapping[str, bytes], baseline: Mapping[str, bytes]
) -> "Comparison":
    given = {"nf4": nf4, "baseline": baseline, "keep_16bit": keep_16bit}
    return _found(cache, "comparison", partial(compare, cache, **given))


def _found(cache: WorkerCache, phase: "WorkerPhase", find: Callable[[], Finding]) -> Finding:
    """What a comparison or evaluation comes to; where memory runs out, from an empty device once more."""
    with cache.working(phase):
        try:
            with oom_as_failure():
                return _checked(find())
        except TrialFailed:
            if not cache.give_up():
                raise
        with oom_as_failure():
            return _checked(find())


def _checked(value: Finding) -> Finding:
    """The value itself; a figure that is not finite fails here and not on the driver.

    Raises:
        ValueError: there is one.
    """
    canonical_json(asdict(value))
    return value


def _adapters(store: Any, *keys: str | None) -> list[dict[str, bytes]]:
    found = ray.get([store.read.remote(key) for key in keys])
    for key, files in zip(keys, found, strict=True):
        if files is None:
            raise FileNotFoundError(f"the adapter of trial {str(key)[:12]} is gone from the sweep's folder")
    return found
