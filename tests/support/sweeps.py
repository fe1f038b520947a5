"""What the tests of orchestrator/ share: small spaces and settings, a sweep without Ray, the command itself."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from random import Random
from time import monotonic, perf_counter
from types import SimpleNamespace
from typing import Any

from ray.exceptions import RayActorError

import search_spaces
from orchestrator import settings
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.driver.driver import Driver, Stop
from orchestrator.ledger import Ledger, adapter_store
from orchestrator.ledger.rows import Entry
from orchestrator.ledger.task import Task, TaskReport
from orchestrator.pruning.rule import StoppingRule, rule_of
from orchestrator.settings import SweepSettings
from orchestrator.workers.faults import fault_of
from search_spaces import Space
from trainables.values.config import State, TrialConfig, rungs
from trainables.values.findings import Comparison, Estimate, Sample, Similarity, TestEvaluation
from trainables.values.results import Cost, Measurement, TrialResult
from trainables.values.workload import Workload

REPO = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-P", "-m", "orchestrator.cli")
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


def measurement(step: int, loss: float) -> Measurement:
    """One rung."""
    return Measurement(step=step, train_loss_nats=loss, eval_loss_nats=loss)


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
        n_groups=120,
        n_decoded_groups=60,
    )


def similarity(cosine: float = 0.99, match: float = 0.5, **values: Any) -> Comparison:
    """A 4-bit trial beside its references on the validation rows."""
    untuned = likeness(cosine=0.5, match=0.1, kl_nats=1.5)
    return Comparison(quantized=likeness(cosine, match, **values), untuned=untuned)


def sample(prompt: str) -> Sample:
    """One test row as three models continue it."""
    texts = {name: f"{name} text of {prompt}" for name in ("response", "quantized", "baseline")}
    return Sample(prompt=prompt, untuned="", **texts)


def evaluated_on_test(comparison: Comparison | None = None) -> TestEvaluation:
    """A trial on three test rows, two of which are quoted where it is compared."""
    return TestEvaluation(
        row_nats=(2.0, 4.0, 6.0),
        row_tokens=(1, 2, 3),
        untuned_row_nats=(4.0, 8.0, 12.0),
        comparison=comparison,
        samples=(sample("Name a tree."), sample("Name a fish.")) if comparison else (),
    )


def evaluated_pair(lost: float, *, gain_nats: float = 1.0, n_rows: int = 64, seed: int = 0) -> TestEvaluation:
    """A 4-bit trial beside its baseline on test rows of about 10 tokens, each a group of its own.

    Args:
        lost: by 4 bits, as a share of what tuning gained.
        seed: of what no truth decides: 0.5 % of the gain a row.
    """
    random, tokens, losses = Random(seed), [], {name: [] for name in ("nf4", "16bit", "untuned", "rounded")}
    for row in range(n_rows):
        n = 8 + row % 5
        tokens.append(n)
        losses["untuned"].append(3.0 * n)
        losses["rounded"].append((3.0 + 0.4 * gain_nats) * n)
        losses["16bit"].append((3.0 - gain_nats) * n)
        losses["nf4"].append((3.0 - gain_nats * (1 - random.gauss(lost, 0.005))) * n)
    return TestEvaluation(
        row_nats=tuple(losses["nf4"]),
        row_tokens=tuple(tokens),
        untuned_row_nats=tuple(losses["rounded"]),
        row_groups=tuple(range(n_rows)),
        baseline_row_nats=tuple(losses["16bit"]),
        baseline_untuned_row_nats=tuple(losses["untuned"]),
        comparison=replace(similarity(), replicates=(likeness(kl_nats=0.02),)),
    )


def trial(number: int = 0, **values: Any) -> TrialResult:
    """A completed 16-bit trial with one measurement; any field can be given."""
    config = values.pop("config", TrialConfig(precision="16bit", rank=4, alpha=8))
    whole = {"key": f"{number:064x}", "number": number, "config": config, "state": "completed", "origin": "search"}
    return TrialResult(**{**whole, "history": (measurement(200, 2.0),), "cost": cost(), **values})


# --- a sweep without Ray

Outcome = Callable[[Task], Iterator[TaskReport]]
"""What a worker would report of a task, one rung at a time."""


def snapshot(settings: SweepSettings, trials: Sequence[TrialResult], facts: Mapping[str, Any]) -> SweepSnapshot:
    """A sweep of these trials, without a ledger."""
    entries = tuple(Entry(result=trial, params={}) for trial in trials)
    return SweepSnapshot(settings=settings, entries=entries, facts=facts)


def completes(task: Task, *, loss: float = 2.0, costs: Cost | None = None) -> Iterator[TaskReport]:
    """A worker that trains without a fault; an adapter is its key."""
    costs = costs or cost()
    *rungs_before, last = task.rungs or rungs(task.config.max_steps)
    for rung in rungs_before:
        yield TaskReport(state="running", measurement=measurement(rung, loss), cost=costs)
    files = {adapter_store.WEIGHTS: task.key.encode()}
    end = {"measurement": measurement(last, loss), "cost": costs}
    yield TaskReport(state="completed", adapter=files, train_seconds=1.0, **end)


class Unpaired(TaskReport):
    """From a worker that could not see the other half's adapter: it brings no similarity."""


def without_similarity(task: Task) -> Iterator[TaskReport]:
    """A worker on which a trial ends at the same moment as the other half of its pair does on another."""
    for report in completes(task):
        if task.kind == "train":
            report = Unpaired(**{f.name: getattr(report, f.name) for f in fields(report)})
        yield report


def breaks(task: Task, *, state: State = "diverged") -> Iterator[TaskReport]:
    """A worker on which the trial, or the comparison, ends in an error."""
    yield TaskReport(state=state, reason=f"{state} here")


@dataclass
class StopsWhenTold:
    """A sweep's own stopping rule, which also stops the trial that a test names next; its copies do so, too."""

    own: StoppingRule
    told: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(now=False))

    def __deepcopy__(self, memo: dict[int, Any]) -> "StopsWhenTold":
        return StopsWhenTold(deepcopy(self.own), self.told)

    def learn(self, trial: TrialResult) -> None:
        self.own.learn(trial)

    def at_rung(self, key: str, measurement: Measurement, cost: Cost, *, may_stop: bool) -> str | None:
        why = self.own.at_rung(key, measurement, cost, may_stop=may_stop)
        return why or ("a test stops it" if self.told.now and may_stop else None)

    def at_end(self, key: str, measurement: Measurement, cost: Cost, *, may_stop: bool) -> str | None:
        return self.own.at_end(key, measurement, cost, may_stop=may_stop)


@dataclass
class Desk:
    """One driver over a sweep's folder, and workers that are plain generators of reports.

    `Desk(folder, settings)` again is a resumed sweep.

    Attributes:
        all_asked: every task handed out, in order.
        lost: keys of tasks that were given up, once each time.
        skipped_seconds: how far its clock is ahead; each question to the driver takes a second.
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
        self.rule = StopsWhenTold(rule_of(asked.space.early_terminate, asked.longest_steps, asked.objectives))
        self.driver = Driver(
            self.settings,
            WORKLOAD,
            self.ledger,
            n_slots=self.n_slots,
            clock=lambda: monotonic() + self.skipped_seconds,
            rule=self.rule,
        )
        self.running: dict[str, tuple[Task, Iterator[TaskReport]]] = {}

    @property
    def study(self) -> Any:
        """The driver's Optuna study."""
        return self.driver.agenda.proposer.study

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
        """Ask for one task; returns an id of it, None where nothing is to be done now."""
        self.skipped_seconds += 1
        task = self.driver.next_task()
        if task is None:
            return None
        name = f"task{len(self.all_asked)}"
        self.all_asked.append(task)
        self.driver.began(task)
        self.running[name] = (task, self._with_similarity(task, outcome))
        return name

    def _with_similarity(self, task: Task, outcome: Outcome) -> Iterator[TaskReport]:
        """As the worker does: the second half of a pair, or a comparison, brings the similarity."""
        half = WORKLOAD.key(task.config.at_other_precision)
        nf4 = task.key if task.config.precision == "nf4" else half
        for report in outcome(task):
            if report.state == "completed" and task.kind == "evaluate" and report.test_evaluation is None:
                compared = similarity() if task.baseline_key else None
                report = replace(report, test_evaluation=evaluated_on_test(compared))
            elif report.state == "completed" and task.kind != "evaluate" and not isinstance(report, Unpaired):
                other_exists = adapter_store.read(self.folder / "adapters", half) is not None
                if other_exists or task.kind == "compare":
                    report = replace(report, similarity=(nf4, similarity()))
            yield report

    def step(self, name: str, *, stop: bool = False) -> bool:
        """Let a task report once; returns whether it ended.

        Args:
            stop: let the rule's answer be to stop, unless the driver spares this trial for good.
        """
        task, reports = self.running[name]
        report = next(reports)
        if task.kind != "train":
            report = replace(report, measurement=None, cost=None, adapter=None)
        self.rule.told.now = stop
        decision = self.driver.report(task, report)
        self.rule.told.now = False
        is_over = report.is_last or isinstance(decision, Stop)
        if is_over:
            del self.running[name]
            self.driver.ended(task)
        return is_over

    def end(self, name: str, *, stop: bool = False) -> None:
        """Let a task go on to its end."""
        while not self.step(name, stop=stop):
            pass

    def lose(self, name: str, error: Exception | None = None) -> None:
        """A task is given up from outside; unless another error is given, because its worker process was lost."""
        task, _ = self.running.pop(name)
        self.lost.append(task.key)
        self.driver.ended(task, fault_of(error or RayActorError()))

    def take_again(self, name: str, outcome: Outcome = completes) -> str:
        """Wait until the task that was just lost is handed out once more."""
        lost = self.all_asked[int(name.removeprefix("task"))]
        self.skipped_seconds += 60
        again = self.take(outcome)
        assert again is not None, "nothing was handed out"
        assert self.all_asked[-1].name == lost.name
        return again

    def do(self, outcome: Outcome = completes, *, stop: bool = False) -> Task:
        """One task from its start to its end."""
        name = self.take(outcome)
        assert name is not None, "there is nothing to do"
        self.end(name, stop=stop)
        return self.all_asked[-1]

    def finish(self, outcome: Outcome = completes) -> list[Task]:
        """One task after the other until there are no more; returns those of the search."""
        before = len(self.all_asked)
        while not self.driver.finished:
            assert len(self.all_asked) - before < 500, "no end"
            name = self.take(outcome)
            if name:
                self.end(name)
            else:
                assert self.driver.finished or self.driver.waits, "nothing runs, nothing is handed out, not finished"
        return [task for task in self.all_asked[before:] if self.is_of_search(task)]


def shuffled(desk: Desk, random: Random, outcomes: Callable[[Task], Iterator[TaskReport]]) -> None:
    """Run a desk to its end with tasks interleaved, pruned and lost at random."""
    for _ in range(2000):
        name = desk.take(outcomes) if random.random() < 0.5 else None
        if desk.driver.finished:
            return
        if name is None and desk.running:
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
    """Of the command, typed and not made: no GPU, this checkout's code, and some variables of a test."""
    typed = {name: value for name, value in os.environ.items() if name != "MAKELEVEL"}
    return {**typed, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPO), "COLUMNS": "200", **changes}


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
