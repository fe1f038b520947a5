"""The driver's time for one trial when a long sweep lies behind it: ask, tell, ledger. Part of bench `search`."""

from collections.abc import Mapping
from pathlib import Path
from random import Random
from shutil import copyfile
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

import search_spaces
from orchestrator import settings as settings_file
from orchestrator.driver.driver import Driver, Stop
from orchestrator.driver.in_order import LAG, LAG_PER_WORKER
from orchestrator.ledger import Ledger
from orchestrator.ledger.task import Task, TaskReport
from tests.bench.overhead import fake_loss_nats
from tests.bench.search_methods import WORKLOAD
from trainables.values.config import TrialConfig, rungs
from trainables.values.results import Cost, Measurement

N_TIMED = 100
SPACE = "pareto"
RAM = Path("/dev/shm")


def cost_of(config: TrialConfig) -> Cost:
    """That grows with rank and targets, as a real one."""
    size = config.rank * len(config.targets)
    memory, seconds = 1000.0 + 2.0 * size, 0.01 + 1e-5 * size
    return Cost(
        peak_memory_mib=memory,
        reserved_memory_mib=memory,
        seconds_per_step=seconds,
        seconds_per_step_p10=seconds,
        seconds_per_step_p90=seconds,
        tokens_per_second=1024 / seconds,
        device="none",
    )


def measurement_of(key: str, config: TrialConfig, step: int) -> Measurement:
    """A loss that falls to one of the trial's own."""
    loss = fake_loss_nats(key) + 1 / step
    return Measurement(step=step, train_loss_nats=loss, eval_loss_nats=loss)


def space_without_baselines() -> search_spaces.Space:
    """At 16 bits only: every task is a trial."""
    whole = search_spaces.load(SPACE)
    searched = {name: parameter for name, parameter in whole.parameters.items() if name != "precision"}
    return whole.model_copy(update={"parameters": searched, "fixed": {**whole.fixed, "precision": "16bit"}})


def fill(ledger: Ledger, settings: settings_file.SweepSettings, n_trials: int) -> None:
    """Completed 16-bit trials at random points."""
    random, parameters = Random(0), settings.space.parameters
    for _ in range(n_trials):
        params = {n: random.choice(p.choices) for n, p in parameters.items() if p.choices}
        params["learning_rate"] = float(np.exp(random.uniform(np.log(5e-5), np.log(2e-3))))
        config = settings.config(params)
        key = WORKLOAD.key(config)
        ledger.add(key, config, params=params, origin="search")
        ledger.keep_cost(config.cost_key, cost_of(config))
        ledger.start(key)
        for step in rungs(config.max_steps):
            ledger.record(key, measurement_of(key, config, step))
        ledger.finish(key, "completed", train_seconds=1.0)


def report_of(task: Task, step: int) -> TaskReport:
    """What a worker says at a rung."""
    return TaskReport(
        state="completed" if step == task.config.max_steps else "running",
        measurement=measurement_of(task.key, task.config, step),
        cost=cost_of(task.config),
    )


def settings_of() -> settings_file.SweepSettings:
    """A sweep without end."""
    return settings_file.make(
        name="long", space=space_without_baselines(), n_trials=100_000, base_model="demo", data="demo", device="cpu"
    )


def filled(folder: Path, settings: settings_file.SweepSettings, n_trials: int) -> Ledger:
    """A ledger on a disk; it is filled in memory, where a transaction waits for nothing."""
    with TemporaryDirectory(dir=RAM if RAM.is_dir() else None) as beside:
        ledger = Ledger(Path(beside) / "ledger.db")
        fill(ledger, settings, n_trials)
        ledger.close()
        copyfile(Path(beside) / "ledger.db", folder / "ledger.db")
    ledger = Ledger(folder / "ledger.db")
    ledger.set_fact(LAG, LAG_PER_WORKER)
    return ledger


def measured(n_trials: int) -> dict[str, Any]:
    """Milliseconds of a trial's calls on the driver, after so many completed ones."""
    settings = settings_of()
    with TemporaryDirectory(prefix="qlora-sweep-") as folder:
        ledger = filled(Path(folder), settings, n_trials)
        began = perf_counter()
        driver = Driver(settings, WORKLOAD, ledger, n_slots=1)
        resume_seconds = perf_counter() - began
        times = [_one(driver) for _ in range(N_TIMED)]
        ledger.close()
    asks, tells, rung_lists = zip(*times, strict=True)
    whole = np.add(asks, tells)
    figures = {"ask": asks, "tell": tells, "ask_and_tell": whole, "rung": [t for one in rung_lists for t in one]}
    found = {f"{name}_ms_p50": 1000 * float(np.median(values)) for name, values in figures.items()}
    found |= {"ask_and_tell_ms_p90": 1000 * float(np.quantile(whole, 0.9))}
    return {"n_trials": n_trials, **found, "resume_seconds": resume_seconds}


def _one(driver: Driver) -> tuple[float, float, list[float]]:
    """Seconds to ask for a trial and to tell of its end, both with what they write; and of each rung between."""
    began = perf_counter()
    task = driver.next_task()
    asked = perf_counter() - began
    driver.began(task)
    rung_seconds = []
    for step in rungs(task.config.max_steps):
        report = report_of(task, step)
        began = perf_counter()
        decision = driver.report(task, report)
        rung_seconds.append(perf_counter() - began)
        if isinstance(decision, Stop):
            break
    began = perf_counter()
    driver.ended(task)
    return asked, perf_counter() - began, rung_seconds


def line(result: Mapping[str, Any]) -> str:
    """One sentence."""
    return (
        f"behind {result['n_trials']} trials, 3 objectives: ask + tell + ledger {result['ask_and_tell_ms_p50']:.1f} ms "
        f"(p50; p90 {result['ask_and_tell_ms_p90']:.1f}), a rung {result['rung_ms_p50']:.1f} ms; "
        f"taking the sweep up {result['resume_seconds']:.1f} s"
    )
