"""What a sweep costs a trial beside the training itself: `make bench ARGS=overhead`

python tests/bench/overhead.py --trials 2000

Trials that do nothing, through the real Ray Tune, driver, ledger and MLflow over the pareto space (none is stopped,
some are baselines), beside as many through bare Ray Tune in reused workers under the same settings; and both for a
tenth as many. Ray's own start is not counted, the workers' is. Also by how much the memory of the driver, and of bare
Ray Tune's, grows a trial once a fifth of them is done. Prints a table and, as its last line, one JSON object; needs no
GPU.
"""

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import perf_counter, time
from typing import Any

import numpy as np
import psutil
import ray
from ray import tune

import search_spaces
from orchestrator import settings as settings_file
from orchestrator.cluster import ray_cluster
from orchestrator.driver import sweep
from orchestrator.ledger.task import Task, TaskReport
from orchestrator.tracking.publishing import publish
from orchestrator.tracking.writer import MlflowWriter
from search_spaces import EarlyTerminate
from trainables.values.errors import ConfigError, SweepError
from trainables.values.findings import Comparison, Estimate, Similarity, TestEvaluation
from trainables.values.results import Cost, Measurement
from trainables.values.workload import Workload

SAMPLE_SECONDS = 0.2
"""Between two looks at the driver's memory."""
SETTLED_SHARE = 0.2
"""Of the trials, until what libraries allocate once is allocated."""
BASELINES_SHARE = 1 / 12
"""Of all trials: half of those searched are NF4, and most of these are pruned before they need a baseline."""


def fake_loss_nats(key: str) -> float:
    """Between 2 and 3, the same for the same trial."""
    return 2 + int(sha256(key.encode()).hexdigest()[:8], 16) / 2**32


def fake_comparison() -> Comparison:
    """Of a 4-bit trial that is nearly its baseline."""
    names = ("token_match_rate", "embedding_cosine", "centered_cosine", "recovered_cosine", "top1_agreement", "kl_nats")

    def similarity(value: float) -> Similarity:
        figures = dict.fromkeys(names, Estimate(value=value, low=value, high=value))
        return Similarity(**figures, n_rows=128, n_decoded_rows=64)

    return Comparison(quantized=similarity(0.99), untuned=similarity(0.5))


def whole_report(task: Task) -> TaskReport:
    """What a worker says of a task that it has done."""
    if task.kind == "evaluate":
        test_evaluation = TestEvaluation(row_nats=(2.0, 4.0), row_tokens=(1, 2), untuned_row_nats=(4.0, 8.0))
        return TaskReport(state="completed", test_evaluation=test_evaluation)
    if task.kind == "compare":
        return TaskReport(state="completed", similarity=(task.key, fake_comparison()))
    loss, config = fake_loss_nats(task.key), task.config
    times = dict.fromkeys(("seconds_per_step", "seconds_per_step_p10", "seconds_per_step_p90"), 0.01)
    memory = dict.fromkeys(("peak_memory_mib", "reserved_memory_mib"), 1000.0 + config.rank * len(config.targets))
    return TaskReport(
        state="completed",
        measurement=Measurement(step=config.max_steps, train_loss_nats=loss, eval_loss_nats=loss),
        cost=Cost(**times, **memory, tokens_per_second=1e5, device="none"),
        adapter={"adapter_model.safetensors": task.key.encode(), "adapter_config.json": b"{}"},
        train_seconds=0.0,
    )


def with_similarity(report: TaskReport, task: Task, other_half: str) -> TaskReport:
    """The report of a pair's second half, which brings its similarity.

    Args:
        other_half: key of the pair's other trial.
    """
    quantized = task.key if task.config.precision == "nf4" else other_half
    return replace(report, similarity=(quantized, fake_comparison()))


class NoOpTrainable(tune.Trainable):
    """Takes tasks as orchestrator.workers.tune_trainable.SweepTrainable does, and says at once that they are done."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._task: Task = new_config["task"]
        self._store = new_config["adapter_store"]
        self._workload = Workload(**new_config["workload"])
        return True

    def step(self) -> dict[str, Any]:
        half = self._workload.key(self._task.config.at_other_precision)
        report = whole_report(self._task)
        if self._task.kind == "train" and ray.get(self._store.read.remote(half)) is not None:
            report = with_similarity(report, self._task, half)
        return {"report": report, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing; without this method Tune would not reuse the worker."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing."""


class BareTrainable(tune.Trainable):
    """Done at its first step."""

    def step(self) -> dict[str, Any]:
        return {"done": True, "loss": 0.0}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing; without this method Tune would not reuse the worker."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing."""


class Ends(tune.Callback):
    """When trials ended, in seconds since the epoch."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.at.append(time())

    def __deepcopy__(self, memo: dict) -> "Ends":
        return self  # Tune copies its settings


def bare(n_trials: int, folder: Path) -> tuple[float, float | None]:
    """Ray Tune alone, random search over one number: seconds, and by how many KiB a trial this process grew."""
    ends = Ends()
    tuner = tune.Tuner(
        tune.with_resources(BareTrainable, {"cpu": 1}),
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(num_samples=n_trials, reuse_actors=True),
        run_config=tune.RunConfig(name="bare", storage_path=str(folder), verbose=0, callbacks=[ends]),
    )
    start = perf_counter()
    with Memory() as memory:
        results = tuner.fit()
    seconds = perf_counter() - start
    if len(results) != n_trials or results.errors:
        raise SweepError(f"bare Ray Tune did {len(results)} of {n_trials} trials, {len(results.errors)} with an error")
    return seconds, growth_kib_per_trial(memory.samples, ends.at)


def bare_apart(n_trials: int) -> tuple[float, float | None]:
    """`bare` in a process and a Ray of its own, which finds no memory to use again that a sweep has left."""
    command = [sys.executable, __file__, "--trials", str(n_trials), "--bare"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SweepError("bare Ray Tune failed, see above")
    seconds, kib = json.loads(done.stdout.splitlines()[-1])
    return seconds, kib


class Memory:
    """Resident memory of this process, looked at again and again.

    Attributes:
        samples: seconds since the epoch, and KiB.
    """

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        self._stop = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(SAMPLE_SECONDS):
            self.samples.append((time(), process.memory_info().rss / 1024))

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def growth_kib_per_trial(samples: Sequence[tuple[float, float]], ends: Sequence[float]) -> float | None:
    """Slope of memory over trials ended, by least squares, after the first fifth of them; None with too few samples.

    Args:
        samples: (seconds since the epoch, KiB). ends: of the trials, seconds since the epoch, ascending.
    """
    n_ended = np.searchsorted(ends, [at for at, _ in samples], side="right")
    settled = (n_ended >= SETTLED_SHARE * len(ends)) & (n_ended < len(ends))
    kib = np.array([kib for _, kib in samples])
    if len(set(n_ended[settled].tolist())) < 3:
        return None
    return float(np.polyfit(n_ended[settled], kib[settled], 1)[0])


def measured(n_trials: int, root: Path) -> dict[str, Any]:
    """One sweep of about so many no-op trials, its files and MLflow runs included, and bare Ray Tune with as many."""
    whole = search_spaces.load("pareto").model_copy(update={"early_terminate": EarlyTerminate(type="none")})
    settings = settings_file.make(
        name=f"overhead-{n_trials}",
        space=whole,
        n_trials=max(1, round(n_trials * (1 - BASELINES_SHARE))),
        base_model="demo",
        data="demo",
        device="cpu",
    )
    writer = MlflowWriter(settings.name, root)
    marks = []

    def started(*_: Any) -> None:
        marks.append(perf_counter())
        writer.start()

    try:
        with Memory() as memory:
            result = sweep.run(settings, root, resume=False, started=started, trainable=NoOpTrainable)
    finally:
        writer.stop()
    marks.append(perf_counter())
    if publish(settings, root, interrupted=result.interrupted) is None:
        raise SweepError("MLflow was not written")
    marks.append(perf_counter())
    bad = [trial for trial in result.trials if trial.state != "completed"]
    if bad:
        raise SweepError(f"{len(bad)} of {len(result.trials)} no-op trials did not complete: {bad[0].reason}")
    n = len(result.trials)
    ends = sorted(trial.ended_at for trial in result.trials)
    last = max(1, n // 10)
    sweeping, publishing = marks[1] - marks[0], marks[2] - marks[1]
    bare_seconds, bare_kib = bare_apart(n)
    return {
        "n_trials": n,
        "n_nf4": sum(trial.config.precision == "nf4" for trial in result.trials),
        "ms_per_trial": 1000 * (sweeping + publishing) / n,
        "ms_per_trial_while_sweeping": 1000 * sweeping / n,
        "ms_per_trial_in_last_tenth": 1000 * (ends[-1] - ends[-1 - last]) / last if n > last else None,
        "driver_kib_per_trial": growth_kib_per_trial(memory.samples, ends),
        "publish_seconds": publishing,
        "bare_ms_per_trial": 1000 * bare_seconds / n,
        "bare_kib_per_trial": bare_kib,
    }


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The table, a line at a time."""
    yield "ms a no-op trial; 'sweeping' ends with the last trial, 'whole' also writes files and the rest of MLflow"
    yield f"{'trials':>8}{'whole':>10}{'sweeping':>10}{'last tenth':>12}{'bare Tune':>11}{'whole / bare':>14}"
    for size in result["sizes"]:
        tail = size["ms_per_trial_in_last_tenth"]
        yield (
            f"{size['n_trials']:8}{size['ms_per_trial']:10.1f}{size['ms_per_trial_while_sweeping']:10.1f}"
            f"{tail if tail is not None else float('nan'):12.1f}{size['bare_ms_per_trial']:11.1f}"
            f"{size['ms_per_trial'] / size['bare_ms_per_trial']:14.1f}"
        )
    ours, theirs = (result["sizes"][-1][f"{whose}_kib_per_trial"] for whose in ("driver", "bare"))
    yield f"driver's memory: {_more(ours)} a trial (at most 20), bare {_more(theirs)}"
    yield f"growth: ours {result['growth']:.2f} times, bare {result['bare_growth']:.2f} times"


def _more(kib: float | None) -> str:
    return "unknown" if kib is None else f"{kib:.1f} KiB more"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--trials", type=int, default=2000, help="about so many, baselines counted; and a tenth of them"
    )
    parser.add_argument("--bare", action="store_true", help="bare Ray Tune alone; prints its seconds and its growth")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    try:
        if given.trials < (1 if given.bare else 10):  # of which a tenth are done too
            raise ConfigError(f"trials must be at least 10, got {given.trials}")
        with TemporaryDirectory(prefix="qlora-sweep-") as folder:
            ray_cluster.connect(None)
            if given.bare:
                print(json.dumps(bare(given.trials, Path(folder))))
                return 0
            sizes = [measured(n, Path(folder)) for n in (given.trials // 10, given.trials)]
    except SweepError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    finally:
        ray.shutdown()
    small, large = sizes
    result = {
        "sizes": sizes,
        "growth": large["ms_per_trial"] / small["ms_per_trial"],
        "bare_growth": large["bare_ms_per_trial"] / small["bare_ms_per_trial"],
        "whole_over_bare": large["ms_per_trial"] / large["bare_ms_per_trial"],
    }
    for line in lines(result):
        print(line)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
