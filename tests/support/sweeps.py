"""What the tests of orchestrator/ share: small spaces and settings, a sweep without Ray, the command itself."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from time import monotonic, perf_counter
from types import SimpleNamespace
from typing import Any

from ray import cloudpickle
from ray.exceptions import RayActorError
from ray.tune.utils import flatten_dict

import search_spaces
from orchestrator import settings
from orchestrator.driver.recorder import Recorder
from orchestrator.driver.scheduler import Pruner
from orchestrator.driver.searcher import SweepSearcher
from orchestrator.ledger import Ledger
from orchestrator.settings import SweepSettings
from orchestrator.workers import adapter_store
from orchestrator.workers.tune_trainable import Report, Task
from search_spaces import Space
from trainables.values.config import TrialConfig, Workload, rungs
from trainables.values.findings import Comparison, Estimate, Similarity, TestEvaluation
from trainables.values.results import Cost, Measurement, TrialResult

REPO = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "orchestrator.cli")
PRETEND = (sys.executable, "-m", "tests.faults.pretend")
"""The same over trials that only take time; its arguments are others."""
WORKLOAD = Workload(
    base_model="demo",
    base_folder="/nowhere",
    base_fingerprint="f" * 64,
    weights="demo",
    data="demo",
    data_folder="/nowhere",
    data_digest="d" * 64,
    compute_dtype="float32",
)
GRID: Mapping[str, Any] = {
    "name": "grid",
    "method": "grid",
    "parameters": {"rank": {"values": [1, 2, 4]}, "precision": {"values": ["nf4", "16bit"]}},
    "fixed": {"alpha": 8, "max_steps": 8},
    "early_terminate": {"type": "none"},
}
TPE: Mapping[str, Any] = GRID | {
    "name": "endless",
    "method": "tpe",
    "parameters": {
        "rank": {"values": [1, 2, 4, 8]},
        "precision": {"values": ["nf4", "16bit"]},
        "learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
    },
}
ASHA = {"type": "asha", "eta": 2}
MOASHA = {"type": "moasha", "eta": 2}


def space(base: Mapping[str, Any] = GRID, **changes: Any) -> Space:
    """A small space with some top-level keys replaced."""
    return search_spaces.parse({**base, **changes}, source="test")


def make(base: Mapping[str, Any] | Space = GRID, **values: Any) -> SweepSettings:
    """Settings of a small sweep on a CPU; any field can be given."""
    whole = base if isinstance(base, Space) else space(base)
    small = {"name": "t", "n_trials": 100, "base_model": "demo", "data": "demo", "device": "cpu"}
    return settings.make(**{"space": whole, **small, **values})


def cost(**values: Any) -> Cost:
    """A cost key's measurement; any field can be given."""
    names = [name for name in Cost.__dataclass_fields__ if name not in ("device", "breakdown")]
    return Cost(**{**dict.fromkeys(names, 1.0), "device": "CPU", **values})


def measurement(step: int, loss: float, **values: Any) -> Measurement:
    """One rung; memory and time are those of `cost()` unless given."""
    own = {"step": step, "train_loss_nats": loss, "eval_loss_nats": loss}
    return Measurement(**{**dict.fromkeys(Measurement.__dataclass_fields__, 1.0), **own, **values})


def estimate(value: float, low: float | None = None) -> Estimate:
    """A figure whose interval begins at itself unless given."""
    return Estimate(value=value, low=value if low is None else low, high=max(value, 1.0))


def likeness(cosine: float = 0.99, match: float = 0.5, kl_nats: float = 0.01, low: float | None = None) -> Similarity:
    """One model against a reference; `low` is where the cosine's interval begins."""
    return Similarity(
        token_match_rate=estimate(match),
        embedding_cosine=estimate(cosine, low),
        centered_cosine=estimate(cosine),
        recovered_cosine=estimate(cosine),
        top1_agreement=estimate(0.9),
        kl_nats=estimate(kl_nats),
        n_rows=128,
        n_decoded_rows=64,
    )


def similarity(cosine: float = 0.99, match: float = 0.5, **values: Any) -> Comparison:
    """A 4-bit trial beside its references on the validation rows."""
    untuned = likeness(cosine=0.5, match=0.1, kl_nats=1.5)
    return Comparison(quantized=likeness(cosine, match, **values), untuned=untuned)


def evaluated_on_test(comparison: Comparison | None = None) -> TestEvaluation:
    """A trial on three test rows."""
    return TestEvaluation(
        row_nats=(2.0, 4.0, 6.0), row_tokens=(1, 2, 3), untuned_row_nats=(4.0, 8.0, 12.0), comparison=comparison
    )


def trial(number: int = 0, **values: Any) -> TrialResult:
    """A completed 16-bit trial with one measurement; any field can be given."""
    config = values.pop("config", TrialConfig(precision="16bit", rank=4, alpha=8))
    whole = {"key": f"{number:064x}", "number": number, "config": config, "state": "completed", "origin": "search"}
    return TrialResult(**{**whole, "history": (measurement(200, 2.0),), **values})


# --- a sweep without Ray

Outcome = Callable[[Task], Iterator[Report]]
"""What a worker would report of a task, one rung at a time."""


def completes(task: Task, *, loss: float = 2.0) -> Iterator[Report]:
    """A worker that trains without a fault; an adapter is its key."""
    for rung in rungs(task.config.max_steps):
        report = {"step": rung, "eval_loss_nats": loss, "measurement": asdict(measurement(rung, loss))}
        report["cost"] = asdict(cost())
        if rung < task.config.max_steps:
            yield {"state": "running", "done": False, **report}
    files = {adapter_store.WEIGHTS: task.key.encode()}
    yield {"state": "completed", "done": True, "adapter": files, "environment": {}, "train_seconds": 1.0, **report}


def breaks(task: Task, *, state: str = "diverged") -> Iterator[Report]:
    """A worker on which the trial, or the comparison, ends in an error."""
    yield {"state": state, "done": True, "reason": f"{state} here", "environment": {}}


@dataclass
class Desk:
    """One driver's searcher, pruner and recorder over a sweep's folder, called in Ray Tune's order.

    A worker is a plain generator of reports. `Desk(folder, settings)` again is a resumed sweep.

    Attributes:
        all_asked: every task handed out, in order.
        lost: keys of tasks that Ray gave up, once each time.
        skipped_seconds: how far its clock is ahead; each question to the searcher takes a second.
        stopped: keys of trials that the pruner, or a test, stopped.
    """

    folder: Path
    settings: SweepSettings
    n_slots: int = 2
    all_asked: list[Task] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    skipped_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.folder / "ledger.db")
        self.ledger.requeue_running()
        asked = self.settings
        self.pruner = Pruner(asked.space.early_terminate, asked.longest_steps, asked.objectives)
        self.searcher = SweepSearcher(
            self.settings,
            WORKLOAD,
            self.ledger,
            self.pruner,
            n_slots=self.n_slots,
            shared={},
            clock=lambda: monotonic() + self.skipped_seconds,
        )
        self.recorder = Recorder(
            self.ledger, self.folder / "adapters", self.pruner, began=lambda trial_id: self.searcher.began(trial_id)
        )
        self.running: dict[str, tuple[Any, Task, Iterator[Report]]] = {}

    @property
    def study(self) -> Any:
        """The searcher's Optuna study."""
        return self.searcher._proposer.study

    @property
    def asked(self) -> list[Task]:
        """Tasks of the search, in order; without what its finalists need afterwards."""
        return [task for task in self.all_asked if self.is_of_search(task)]

    def is_of_search(self, task: Task) -> bool:
        """Whether a task is about a candidate, before any is evaluated."""
        entry = self.ledger.entry(task.key)
        return task.kind != "evaluate" and entry is not None and entry.result.is_of_search

    @property
    def states(self) -> dict[str, str]:
        """State of every candidate by key."""
        return {t.key: t.state for t in self.candidates}

    @property
    def candidates(self) -> list[TrialResult]:
        """Trials of the search and their baselines, by number."""
        return [trial for trial in self.ledger.trials() if trial.is_of_search]

    def crash(self) -> None:
        """Die without a word; what was running stays so in the ledger."""
        self.ledger.close()

    def take(self, outcome: Outcome = completes) -> str | None:
        """Ask for one task; returns the Tune trial's id, None where nothing is to be done now."""
        self.skipped_seconds += 1
        trial_id = f"tune{len(self.all_asked)}"
        config = self.searcher.suggest(trial_id)
        if not isinstance(config, dict):
            return None
        task = Task.from_dict(config["task"])
        self.all_asked.append(task)
        tune_trial = SimpleNamespace(trial_id=trial_id, config=config)
        self.pruner.on_trial_add(None, tune_trial)
        self.recorder.on_trial_start(0, [], tune_trial)
        self.running[trial_id] = (tune_trial, task, self._with_similarity(task, outcome))
        return trial_id

    def _with_similarity(self, task: Task, outcome: Outcome) -> Iterator[Report]:
        """As the worker does: the second half of a pair, or a comparison, brings the similarity."""
        if task.kind == "evaluate":
            compared = similarity() if task.baseline_key else None
            for report in outcome(task):
                done = report["state"] == "completed"
                yield {**report, **({"test_evaluation": asdict(evaluated_on_test(compared))} if done else {})}
            return
        half = WORKLOAD.key(task.config.at_other_precision)
        of = task.key if task.config.precision == "nf4" else half
        for report in outcome(task):
            other_exists = adapter_store.read(self.folder / "adapters", half) is not None
            if report["state"] == "completed" and (other_exists or task.kind == "compare"):
                report = {"similarity": asdict(similarity()), "similarity_of": of, **report}
            yield report

    def step(self, trial_id: str, *, stop: bool = False) -> bool:
        """Let a task report once, as Tune would pass it on; returns whether it ended.

        Args:
            stop: let the scheduler's answer be "stop", unless it spares this trial for good.
        """
        tune_trial, task, reports = self.running[trial_id]
        report = next(reports)
        # as Tune hands it over, which asks nothing about a result that is the last
        decision = "" if report["done"] else self.pruner.on_trial_result(None, tune_trial, flatten_dict(report))
        may_stop = stop and task.kind == "train" and task.key not in self.pruner.protected
        if decision == "STOP" or (may_stop and not report["done"]):
            report["done"] = True
        self.recorder.on_trial_result(0, [], tune_trial, report)
        if report["done"]:
            del self.running[trial_id]
            self.searcher.on_trial_complete(trial_id, report)
        return report["done"]

    def end(self, trial_id: str, *, stop: bool = False) -> None:
        """Let a task go on to its end."""
        while not self.step(trial_id, stop=stop):
            pass

    def lose(self, trial_id: str, error: Exception | None = None) -> None:
        """Ray gave a task up; unless another error is given, because its worker process was lost."""
        _, task, _ = self.running.pop(trial_id)
        self.lost.append(task.key)
        pickled = self.folder / f"{trial_id}.pkl"
        pickled.write_bytes(cloudpickle.dumps(error or RayActorError()))
        files = {"pickled_error_file": str(pickled), "error_file": None}
        self.pruner.on_trial_error(None, SimpleNamespace(trial_id=trial_id, **files))
        self.searcher.on_trial_complete(trial_id, error=True)

    def take_again(self, trial_id: str, outcome: Outcome = completes) -> str:
        """Wait until the task that was just lost is handed out once more."""
        lost = self.all_asked[int(trial_id.removeprefix("tune"))]
        self.skipped_seconds += 60
        again = self.take(outcome)
        assert again is not None, "nothing was handed out"
        assert (self.all_asked[-1].kind, self.all_asked[-1].key) == (lost.kind, lost.key)
        return again

    def do(self, outcome: Outcome = completes, *, stop: bool = False) -> Task:
        """One task from its start to its end."""
        trial_id = self.take(outcome)
        assert trial_id is not None, "there is nothing to do"
        self.end(trial_id, stop=stop)
        return self.all_asked[-1]

    def finish(self, outcome: Outcome = completes) -> list[Task]:
        """One task after the other until the searcher says that there are no more; returns those of the search."""
        before = len(self.all_asked)
        while not self.searcher.finished:
            assert len(self.all_asked) - before < 500, "no end"
            trial_id = self.take(outcome)
            if trial_id:
                self.end(trial_id)
            else:
                waits = self.searcher._retries.waiting
                assert self.searcher.finished or waits, "nothing runs, nothing is handed out, and it is not finished"
        return [task for task in self.all_asked[before:] if self.is_of_search(task)]


def shuffled(desk: Desk, random: Random, outcomes: Callable[[Task], Iterator[Report]]) -> None:
    """Run a desk to its end with tasks interleaved, pruned and lost at random."""
    for _ in range(2000):
        trial_id = desk.take(outcomes) if random.random() < 0.5 else None
        if desk.searcher.finished:
            return
        if trial_id is None and desk.running:
            chosen = random.choice(sorted(desk.running))
            if random.random() < 0.05:
                desk.lose(chosen)
            else:
                desk.step(chosen, stop=random.random() < 0.2)
    raise AssertionError("no end")


# --- the command in a process of its own


@dataclass(frozen=True)
class Finished:
    """What the command left behind.

    Attributes:
        seconds: wall time of the whole process.
    """

    code: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, which must be one JSON object and nothing else."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


CANARY = "canary5e1fb0c7d2a94"
CANARIES = {
    "HF_TOKEN": f"hf_{CANARY}hub",
    "MLFLOW_TRACKING_TOKEN": f"{CANARY}token",
    "MLFLOW_TRACKING_USERNAME": f"{CANARY}user",
    "MLFLOW_TRACKING_PASSWORD": f"{CANARY}password",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}aws",
}
"""Secrets of an environment that nothing may repeat."""


def environment(**changes: str) -> dict[str, str]:
    """Of the command: no GPU, this checkout's code, and some variables of a test."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPO), "COLUMNS": "200", **changes}


def start(*arguments: str, cwd: Path, program: Sequence[str] = COMMAND, **variables: str) -> subprocess.Popen[str]:
    """Start the command as a process group of its own, as a terminal does."""
    return subprocess.Popen(
        [*program, *arguments],
        cwd=cwd,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def command(
    *arguments: str, cwd: Path, timeout: float = 300, program: Sequence[str] = COMMAND, **variables: str
) -> Finished:
    """Run the command to its end."""
    begin = perf_counter()
    process = start(*arguments, cwd=cwd, program=program, **variables)
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        out, err = process.communicate()
        print(f"{arguments} gave after {timeout:g} s:\n{out}\n{err}")
        raise
    return Finished(process.returncode, out, err, perf_counter() - begin)
