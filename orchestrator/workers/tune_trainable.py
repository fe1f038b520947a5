"""The only Trainable: a warm worker that takes one task after the other.

Each step of the Trainable is one Report of its task, see orchestrator.ledger.task.
"""

import os
import traceback
from collections.abc import Iterator
from dataclasses import asdict, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray import tune
from ray.exceptions import RayError

from orchestrator.ledger.task import Report, Task
from orchestrator.workers import node_inputs, storage
from orchestrator.workers.versions import refuse_here
from trainables.cost.device import is_lost
from trainables.values.config import State, Workload, canonical_json
from trainables.values.errors import DeviceLost, TrialFailed

if TYPE_CHECKING:
    from trainables.values.findings import Comparison, TestEvaluation


Finding = TypeVar("Finding", "Comparison", "TestEvaluation")


class SweepTrainable(tune.Trainable):
    """Runs tasks on one device; the base model and the tokens stay between them."""

    def setup(self, config: dict[str, Any]) -> None:
        refuse_here(config.get("versions"))  # first: what is imported next may not be there
        os.environ["HF_HUB_OFFLINE"] = "1"  # all inputs are on this node already
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        if config["device"] == "cpu":
            torch.set_num_threads(1)  # one core a trial
        self._cache = None
        self._reports: Iterator[Report] = iter(())
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._leave()
        self._reports = self._work(new_config)
        self._key, self._storage = new_config["task"].key, new_config.get("storage")
        return True

    def step(self) -> dict[str, Any]:
        report = next(self._reports)
        if self._storage and report.adapter:  # it goes there instead of through the driver's hands
            where, sweep = self._storage
            storage.write(where, sweep, self._key, report.adapter)
            report = replace(report, adapter=None, adapter_at=self._storage)
        return {"report": report, "done": report.is_last}

    def cleanup(self) -> None:
        self._leave()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: state lives in the ledger. Without this method Tune would not reuse the worker."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: an interrupted trial goes on from its checkpoint in the adapter store."""

    def _leave(self) -> None:
        if hasattr(self._reports, "close"):
            self._reports.close()  # a pruned trial's adapter comes off the base

    def _work(self, config: dict[str, Any]) -> Iterator[Report]:
        task, store = config["task"], config["adapter_store"]
        try:
            if self._cache is None:
                from trainables.worker_cache import WorkerCache

                workload = node_inputs.here(Workload(**config["workload"]), config.get("inputs"))
                self._cache = WorkerCache(workload, config["device"])
            yield from {"train": _train, "compare": _compare, "evaluate": _evaluate}[task.kind](
                self._cache, task, store
            )
        except TrialFailed as error:
            yield _end(self._cache, error.state, reason=str(error))
        except RayError:  # the cluster's fault, not the trial's: orchestrator.workers.faults decides
            raise
        except Exception as error:
            traceback.print_exc()
            self._cache = None  # of unknown state now
            if is_lost(config["device"]):
                raise DeviceLost(f"{type(error).__name__}: {error}") from None
            yield Report(state="failed", reason=f"{type(error).__name__}: {error}")


def _end(
    cache: Any, state: State, fallback: str | None = None, continued_from: int | None = None, **values: Any
) -> Report:
    from trainables.cost.device import environment

    facts = environment(cache.device) | {
        "compute_dtype": cache.workload.compute_dtype,
        "weights": cache.workload.weights,
    }
    if fallback:
        facts["fallback"] = f"eager engine: {fallback}"
    if continued_from:
        facts["continued_from_step"] = str(continued_from)
    return Report(state=state, environment=facts, **values)


def _train(cache: Any, task: Task, store: Any) -> Iterator[Report]:
    from trainables.cost.device import device_name
    from trainables.trial import Trial

    before = ray.get(store.checkpoint.remote(task.key))
    start = perf_counter() - (before.seconds if before else 0.0)
    here = device_name(cache.device)
    cost = next((cost for cost in task.costs if cost.device == here), None)
    trial = Trial(task.config, cache, cost=cost, checkpoint=before)
    kept: list[Any] = []
    try:
        for measurement in trial.measurements():
            last = {"measurement": measurement, "cost": trial.cost}
            if measurement.step < task.config.max_steps:
                yield Report(state="running", **last)
                if not kept or ray.wait(kept, timeout=0)[0]:  # a disk that is behind gets no more to do
                    checkpoint = trial.checkpoint(measurement.step, seconds=perf_counter() - start)
                    kept = [store.keep.remote(checkpoint)]  # not waited for: it may be lost, training goes on
        files = trial.adapter_files()
    finally:
        trial.close()
    seconds = perf_counter() - start
    fallback = trial.fallback
    half = task.config.at_other_precision
    other_files = ray.get(store.read.remote(cache.workload.key(half)))
    if other_files is not None:  # the second half of a pair measures it
        nf4 = task.config.precision == "nf4"
        try:
            similarity = _compared(cache, nf4=files if nf4 else other_files, baseline=other_files if nf4 else files)
        except Exception:  # the training was sound; the driver asks for the comparison once more
            traceback.print_exc()
        else:
            last["similarity"] = (task.key if nf4 else cache.workload.key(half), similarity)
    yield _end(
        cache,
        "completed",
        fallback,
        before.step if before else None,
        adapter=files,
        train_seconds=seconds,
        **last,
    )


def _compare(cache: Any, task: Task, store: Any) -> Iterator[Report]:
    nf4, baseline = _adapters(store, task.key, task.baseline_key)
    yield _end(cache, "completed", similarity=(task.key, _compared(cache, nf4=nf4, baseline=baseline)))


def _evaluate(cache: Any, task: Task, store: Any) -> Iterator[Report]:
    from trainables.comparison.compare import evaluate_on_test
    from trainables.cost.memory import oom_as_failure

    files, *replicates = _adapters(store, task.key, *task.replicate_keys)
    baseline = _adapters(store, task.baseline_key)[0] if task.baseline_key else None
    with oom_as_failure():
        test_evaluation = evaluate_on_test(cache, task.config, files=files, baseline=baseline, replicates=replicates)
    yield _end(cache, "completed", test_evaluation=_checked(test_evaluation))


def _compared(cache: Any, *, nf4: dict[str, bytes], baseline: dict[str, bytes]) -> "Comparison":
    from trainables.comparison.compare import compare
    from trainables.cost.memory import oom_as_failure

    with oom_as_failure():
        return _checked(compare(cache, nf4=nf4, baseline=baseline))


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
