"""How fast trials and steps are, beside what a user gets today: `make bench ARGS=speed`

python tests/bench/speed.py --base-model random:FOLDER --data ROWS

Ours and the peer (tests/bench/peer.py) in turns. Prints a table and, as its last line, one JSON object; each part as
soon as it is known on standard error. Without a GPU it takes the demo on the CPU, eagerly. Only --sweep needs Ray and
MLflow.
"""

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, get_args

import numpy as np
import torch
import yaml
from transformers.utils import logging

from tests.bench.short_rows import write_rows
from trainables import demo
from trainables.comparison.compare import compare
from trainables.cost.device import count_gpus, device_name, native_dtype
from trainables.cost.shape import Shape
from trainables.models import inputs
from trainables.models.families import shape_in
from trainables.trial import Trial
from trainables.values.config import Loop, Precision, TrialConfig
from trainables.values.errors import ConfigError, SweepError
from trainables.values.results import Cost
from trainables.worker_cache import WorkerCache

PEER = Path(__file__).with_name("peer.py")
REPO = Path(__file__).resolve().parents[2]
RANKS = (2, 4, 8, 16)
LEARNING_RATES = {"distribution": "log_uniform_values", "min": 5e-5, "max": 2e-3}
PEAK_LENGTH_TOKENS = 512
PRODUCT_WIDTH = {"cuda": 8192, "cpu": 512}
N_PRODUCTS = 20
FEW_STEPS = 8
SHORT_ROWS = "short-rows"
PROFILED_PAIRS = len(RANKS)
"""Each rank once, so that the first window holds all that is recorded or measured only once."""

Files = Mapping[str, bytes]


# --- pure


def union(intervals: Iterable[tuple[int, int]]) -> int:
    """Length of what the intervals (start, end) cover, where they overlap once."""
    covered, reached = 0, None
    for start, end in sorted(intervals):
        begin = start if reached is None else max(start, reached)
        covered += max(0, end - begin)
        reached = max(begin, end)
    return covered


def step_flops(shape: Shape, config: TrialConfig) -> int:
    """Operations of the matrix products that a full step cannot do without, each row's first token alone unsupervised.

    n tokens through W (i x o) take 2 n i o, and its gradient to the input as many again; none is made to W, which is
    frozen. The adapter's products take 2 n r (i + o) forward, to its weights, and to its inputs. Attention takes
    4 n l d (scores and mixture; not halved for the causal mask), and twice that backward. The head takes 2 m V d twice,
    m being the positions that get logits: all, or in the lean loop the supervised ones. Nothing before the first
    adapted module gets a gradient. n: batch x length l; d: width; r: rank; V: vocabulary.
    """
    n, r = config.batch_size * config.max_length_tokens, config.rank
    attention = 4 * n * config.max_length_tokens * shape.query_size
    attention_output = next(linear.name for linear in shape.linears if linear.role == "attention output")
    total, needs_gradient = 0, False
    for _ in range(shape.n_layer):
        for name, (i, o) in shape.modules.items():
            if name == attention_output:
                total += attention * (3 if needs_gradient else 1)
            total += 2 * n * i * o * (2 if needs_gradient else 1)
            if name in config.targets:
                total += 2 * n * r * (2 * (i + o) + o + (i if needs_gradient else 0))
                needs_gradient = True
    m = n - config.batch_size if config.loop == "lean" else n
    return total + 2 * 2 * m * shape.vocab_size * shape.hidden_size


def drawn_configs(like: TrialConfig, n_pairs: int) -> list[TrialConfig]:
    """The 4-bit halves of so many pairs: ranks of the model card in turn, learning rates from 5e-5 to 2e-3."""
    low, high = LEARNING_RATES["min"], LEARNING_RATES["max"]
    rates = np.random.default_rng(0).uniform(np.log(low), np.log(high), n_pairs)
    return [
        replace(like, precision="nf4", rank=RANKS[n % len(RANKS)], learning_rate=float(np.exp(rate)))
        for n, rate in enumerate(rates)
    ]


def at_full_length(found: Mapping[str, Any], steps: int) -> float:
    """Seconds of a peer's trial if it had done so many steps: its training goes with them, all else stays."""
    return found["seconds"] + found["train_seconds"] * (steps / found["steps"] - 1)


def without_steps(few: tuple[int, float], many: tuple[int, float]) -> float:
    """Seconds of a trial of no steps, by a line through those of two trials, (steps, seconds) each."""
    (n, seconds), (n_many, seconds_many) = few, many
    return seconds - n * (seconds_many - seconds) / (n_many - n)


def extrapolated(windows: Sequence[tuple[int, float]], n_trials: int) -> float:
    """Seconds of so many trials by windows of (trials, seconds): beyond these as in all of them but the first."""
    n_seen = sum(n for n, _ in windows)
    later = windows[1:] or windows
    each = sum(seconds for _, seconds in later) / sum(n for n, _ in later)
    return sum(seconds for _, seconds in windows) + (n_trials - n_seen) * each


# --- measuring


def synchronized(work: Callable[[], object], device: str) -> float:
    """Seconds of work, to its end on the device."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


def product_rate(device: str, dtype: torch.dtype, n_repetitions: int) -> float:
    """Operations a second of large square matrix products: the median over repetitions of N_PRODUCTS each."""
    width = PRODUCT_WIDTH[device]
    a, b = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    def products() -> None:
        for _ in range(N_PRODUCTS):
            torch.mm(a, b, out=out)

    synchronized(products, device)
    seconds = median(synchronized(products, device) for _ in range(n_repetitions))
    return N_PRODUCTS * 2 * width**3 / seconds


def cost_of(config: TrialConfig, cache: WorkerCache) -> tuple[Cost, str | None]:
    """A full step's cost, measured now, and why it was eager where a graph was asked for."""
    trial = Trial(replace(config, max_steps=1), cache)
    trial.close()
    return trial.cost, trial.fallback


def step_times(cache: WorkerCache, like: TrialConfig, rate: float, n_repetitions: int) -> list[dict[str, Any]]:
    """Of a full step in every way that the device can run it; the ways take turns."""
    shape = shape_in(Path(cache.workload.base_folder))
    engines = ("eager", "graph") if cache.device == "cuda" else ("eager",)
    cells = [
        replace(like, precision=precision, engine=engine, loop=loop)
        for engine in engines
        for loop in get_args(Loop)
        for precision in get_args(Precision)
    ]
    rounds = [[cost_of(cell, cache) for cell in cells] for _ in range(n_repetitions)]
    table = []
    for cell, costs in zip(cells, zip(*rounds, strict=True), strict=True):
        seconds = [cost.seconds_per_step for cost, _ in costs]
        table.append(
            {
                "precision": cell.precision,
                "engine": cell.engine,
                "loop": cell.loop,
                "ms_per_step": 1000 * median(seconds),
                "ms_per_step_range": 1000 * (max(seconds) - min(seconds)),
                "product_rate_share": step_flops(shape, cell) / median(seconds) / rate if shape else None,
                "fallback": costs[-1][1],
            }
        )
    return table


def nf4_ratios(table: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Time of a step at 4 bits over 16, by engine and loop."""
    of = {(cell["engine"], cell["loop"], cell["precision"]): cell["ms_per_step"] for cell in table}
    return {f"{e} {lo}": of[e, lo, "nf4"] / of[e, lo, "16bit"] for e, lo, precision in of if precision == "nf4"}


def peaks(cache: WorkerCache, like: TrialConfig) -> dict[str, Any]:
    """Peak memory of an NF4 step at twice the usual length, in both loops."""
    length = min(PEAK_LENGTH_TOKENS, cache.base("nf4").config.n_positions)
    config = replace(like, precision="nf4", engine="eager", max_length_tokens=length)
    of = {loop: cost_of(replace(config, loop=loop), cache)[0].peak_memory_mib for loop in get_args(Loop)}
    found = {f"{loop}_mib": mib for loop, mib in of.items()}
    return found | {"max_length_tokens": length, "lean_over_standard": of["lean"] / of["standard"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSeconds:
    """Wall time of one trial.

    Attributes:
        begin_seconds: recording steps and measuring the cost key, where they are new, and attaching the adapter.
        train_seconds: all steps, and the held-out loss at each rung.
        end_seconds: adapter to files, and off the base.
        compare_seconds: the pair's similarity, which its second half measures.
    """

    precision: Precision
    begin_seconds: float
    train_seconds: float
    end_seconds: float
    compare_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return self.begin_seconds + self.train_seconds + self.end_seconds + self.compare_seconds


def run_trial(cache: WorkerCache, config: TrialConfig, costs: dict[str, Cost]) -> tuple[TrialSeconds, Files]:
    """One whole trial and its adapter; `costs` are the cells known so far, as a sweep's ledger has them."""
    marks = [perf_counter()]
    trial = Trial(config, cache, cost=costs.get(config.cost_key))
    try:
        costs.setdefault(config.cost_key, trial.cost)
        marks.append(perf_counter())
        for _ in trial.measurements():
            pass
        marks.append(perf_counter())
        files = trial.adapter_files()
    finally:
        trial.close()
    marks.append(perf_counter())
    begin, train, end = np.diff(marks).tolist()
    times = TrialSeconds(precision=config.precision, begin_seconds=begin, train_seconds=train, end_seconds=end)
    return times, files


def run_pairs(cache: WorkerCache, configs: Sequence[TrialConfig], costs: dict[str, Cost]) -> list[TrialSeconds]:
    """Each 4-bit trial, then its baseline, which brings the comparison: as a sweep does it, on one device."""
    found = []
    for config in configs:
        quantized, nf4 = run_trial(cache, config, costs)
        baseline, of_baseline = run_trial(cache, config.at_other_precision, costs)
        start = perf_counter()
        compare(cache, nf4=nf4, baseline=of_baseline)
        found += [quantized, replace(baseline, compare_seconds=perf_counter() - start)]
    return found


def trial_figures(times: Sequence[TrialSeconds], wall_seconds: float) -> dict[str, Any]:
    """Trials an hour over the whole wall time, and medians of a trial's parts by precision."""
    parts = [name for name in TrialSeconds.__dataclass_fields__ if name.endswith("seconds")]
    return {
        "n_trials": len(times),
        "trials_an_hour": 3600 * len(times) / wall_seconds,
        "seconds_per_trial": wall_seconds / len(times),
        **{
            precision: {
                "median_seconds": median(one.seconds for one in own),
                **{f"median_{part}": median(getattr(one, part) for one in own) for part in parts},
            }
            for precision in get_args(Precision)
            if (own := [one for one in times if one.precision == precision])
        },
    }


def held_out_seconds(
    cache: WorkerCache, configs: Sequence[TrialConfig], costs: dict[str, Cost], n_repetitions: int
) -> float:
    """What held-out loss at all rungs adds to a trial: what training would take if it had no steps.

    Trials of few steps and of many are measured at equally many rungs. The median over configs and repetitions.
    """
    found = []
    for config in configs:
        few, many = replace(config, max_steps=FEW_STEPS), config
        for _ in range(n_repetitions):
            a, b = (run_trial(cache, one, costs)[0].train_seconds for one in (few, many))
            found.append(without_steps((few.max_steps, a), (many.max_steps, b)))
    return median(found)


def evaluation_figures(ours: Mapping[str, Any], held_out: float) -> dict[str, float]:
    """A trial's evaluation: held-out loss at every rung, and half of its pair's comparison."""
    comparison = sum(ours[precision]["median_compare_seconds"] for precision in get_args(Precision))
    return {
        "held_out_seconds": held_out,
        "comparison_seconds_a_pair": comparison,
        "seconds_per_trial": held_out + comparison / 2,
    }


def kernels(events: Iterable[Any]) -> Iterator[tuple[int, int]]:
    """Start and end in ns of each kernel among a profiler's events; copies and fills are none."""
    for event in events:
        on_device = event.device_type() == torch.autograd.DeviceType.CUDA
        if on_device and not event.name().startswith(("Memcpy", "Memset")):
            yield event.start_ns(), event.start_ns() + event.duration_ns()


def busy_share(
    cache: WorkerCache, configs: Sequence[TrialConfig], *, n_trials: int, wall_seconds: float
) -> dict[str, Any] | None:
    """Share of the wall time of `n_trials` trials, run before without a profiler, in which a kernel ran; None on a CPU.

    A profiler slows trials down and takes longer still to say what it saw, so that fewer are profiled, PROFILED_PAIRS
    pairs at a time. As those of the wall time did, these begin with nothing recorded, which the first window then
    holds; in the other windows trials repeat the same work, and the trials that no window holds count as their mean.
    Steps are recorded after an empty profile: the kernels of graphs from before it may stay unseen, which
    n_kernels_per_step would show.
    """
    if cache.device != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities):
        torch.ones(1, device="cuda")
    cache.forget()
    costs: dict[str, Cost] = {}
    windows, n_kernels = [], 0
    for i in range(0, len(configs), PROFILED_PAIRS):
        pairs = configs[i : i + PROFILED_PAIRS]
        with torch.profiler.profile(activities=activities) as profile:
            wall = synchronized(lambda pairs=pairs: run_pairs(cache, pairs, costs), cache.device)
        found = list(kernels(profile.profiler.kineto_results.events()))
        n_kernels += len(found)
        windows.append({"n_trials": 2 * len(pairs), "busy_seconds": union(found) / 1e9, "wall_seconds": wall})
        say(json.dumps({"profiled": windows[-1]}))
    n_steps = sum(2 * config.max_steps for config in configs)
    kernel_seconds = extrapolated([(one["n_trials"], one["busy_seconds"]) for one in windows], n_trials)
    return {
        "n_trials": n_trials,
        "kernel_seconds": kernel_seconds,
        "wall_seconds": wall_seconds,
        "busy_share": kernel_seconds / wall_seconds,
        "n_profiled_trials": 2 * len(configs),
        "n_kernels_per_step": n_kernels / n_steps,
        "profiled": windows,
    }


# --- the peer and the sweep, in processes of their own


def peer_trial(folder: str, rows: str, config: TrialConfig, *, with_tune: bool) -> dict[str, Any]:
    """One trial of the peer; what it printed, or why it failed under `error`."""
    numbers = {"--steps": config.max_steps, "--batch-size": config.batch_size, "--max-length": config.max_length_tokens}
    command = [sys.executable, str(PEER), folder, rows, "--precision", config.precision, "--rank", str(config.rank)]
    command += [str(part) for pair in numbers.items() for part in pair] + ([] if with_tune else ["--without-tune"])
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"precision": config.precision, "error": (done.stderr.strip().splitlines() or ["no word"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def peer_figures(found: Sequence[Mapping[str, Any]], steps: int) -> dict[str, Any] | None:
    """Seconds a trial, half of them at 4 bits where both were run; None where none was."""
    whole = [one for one in found if "error" not in one]
    if not whole:
        return None if not found else {"runs": list(found), "seconds_per_trial": None}
    of = {p: [at_full_length(one, steps) for one in whole if one["precision"] == p] for p in get_args(Precision)}
    seconds = mean(median(own) for own in of.values() if own)
    return {
        "with_tune": whole[0]["tune"],
        "n_steps": whole[0]["steps"],
        "extrapolated": whole[0]["steps"] < steps,
        "ms_per_step": 1000 * median(one["train_seconds"] / one["steps"] for one in whole),
        "seconds_per_trial": seconds,
        "trials_an_hour": 3600 / seconds,
        "runs": list(found),
    }


def swept(folder: str, rows: str, n_trials: int, n_steps: int, device: str) -> dict[str, Any]:
    """A whole sweep of the model card's recipe at 4 bits by the command, none pruned; baselines and other seeds too."""
    space = {
        "description": "The recipe of the model card at 4 bits; each trial brings its 16-bit baseline.",
        "method": "random",
        "parameters": {"rank": {"values": list(RANKS)}, "learning_rate": LEARNING_RATES},
        "fixed": {"precision": "nf4", "alpha": 16, "batch_size": 4, "max_length_tokens": 256, "max_steps": n_steps},
        "early_terminate": {"type": "none"},
    }
    with TemporaryDirectory(prefix="qlora-sweep-") as cwd:
        Path(cwd, "space.yaml").write_text(yaml.safe_dump(space), encoding="utf-8")
        options = {"space": "space.yaml", "name": "speed", "trials": n_trials, "steps": n_steps, "device": device}
        options |= {"base-model": folder, "data": rows}
        command = [sys.executable, "-m", "orchestrator.cli", "run", "--json"]
        command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        start = perf_counter()
        search = os.pathsep.join([str(REPO), *filter(None, sys.path)])  # whole paths, for another working folder
        variables = os.environ | {"PYTHONPATH": search}
        done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)
        wall = perf_counter() - start
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or ["no word"])[-1]}
        ledger = sqlite3.connect(Path(cwd) / "mlflow_runs" / "sweeps" / "speed" / "ledger.db")
        query = "SELECT count(*), max(ended_at) - min(started_at) FROM trials WHERE state = 'completed'"
        (n_completed, seconds) = ledger.execute(query).fetchone()
        ledger.close()
    return {
        "n_trials": n_completed,
        "seconds_first_start_to_last_end": seconds,
        "wall_seconds": wall,
        "trials_an_hour": 3600 * n_completed / seconds,
    }


# --- all together


def in_turns(
    cache: WorkerCache, configs: Sequence[TrialConfig], costs: dict[str, Cost], rows: str, given: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Ours and the peer, a turn each and again; figures of both."""
    n_peer = 0 if given.peer == "none" else given.peer_trials
    with_tune = find_spec("ray") is not None if given.peer == "auto" else given.peer == "tune"
    if n_peer and not with_tune:
        say("the peer runs without Ray Tune: the Trainer's script alone, one process a trial")
    peer_config = replace(configs[0], rank=8, max_steps=given.peer_steps or given.steps)
    times, wall, last, found = [], 0.0, {}, []
    n_turns = max(1, min(max(given.turns, n_peer), len(configs)))
    for n, turn in enumerate(np.array_split(np.arange(len(configs)), n_turns)):
        start = perf_counter()
        own = run_pairs(cache, [configs[i] for i in turn], costs)
        seconds = perf_counter() - start
        times, wall, last = times + own, wall + seconds, trial_figures(own, seconds)
        if n < n_peer:
            config = replace(peer_config, precision=get_args(Precision)[n % 2])
            found.append(peer_trial(cache.workload.base_folder, rows, config, with_tune=with_tune))
            say(json.dumps({"peer": found[-1]}))
    ours = trial_figures(times, wall) | {"trials_an_hour_in_last_turn": last["trials_an_hour"]}
    return ours, peer_figures(found, given.steps)


def measured(given: argparse.Namespace, base: str, rows: str) -> dict[str, Any]:
    """Everything, as the JSON object has it."""
    begun = perf_counter()
    device = given.device
    with TemporaryDirectory(prefix="qlora-sweep-") as cache:
        if rows == SHORT_ROWS:
            if not Path(base.removeprefix("random:")).is_dir():
                raise ConfigError(
                    f"{SHORT_ROWS} are written with the tokenizer of a base that is a folder, not {base!r}"
                )
            rows = str(Path(cache) / "short.json")
            write_rows(Path(base.removeprefix("random:")), Path(rows))
        workload = inputs.fetch(base, rows, Path(cache)).workload(native_dtype(device))
        cache = WorkerCache(workload, device)
        like = TrialConfig(
            precision="16bit",
            rank=8,
            alpha=16,
            batch_size=given.batch_size,
            max_length_tokens=given.max_length_tokens,
            max_steps=given.steps,
            engine="graph" if device == "cuda" else "eager",
            loop="lean",
        )
        load_seconds = {p: synchronized(lambda p=p: cache.base(p), device) for p in get_args(Precision)}
        result: dict[str, Any] = {
            "base": workload.base_caption,
            "device": device_name(device),
            "compute_dtype": workload.compute_dtype,
            "torch": torch.__version__,
            "batch_size": like.batch_size,
            "max_length_tokens": like.max_length_tokens,
            "n_steps": like.max_steps,
            "load_seconds": load_seconds,
        }

        def keep(name: str, value: Any) -> None:
            result[name] = value
            say(json.dumps({name: value}))

        configs = drawn_configs(like, max(1, given.trials // 2))
        peer_rows = str(demo.ROWS_FILE) if rows == "demo" else absolute(rows)
        costs: dict[str, Cost] = {}
        ours, peer = in_turns(cache, configs, costs, peer_rows, given)  # first: nothing is recorded or compiled yet
        keep("ours", ours)
        keep("peer", peer)
        known = peer is not None and peer["seconds_per_trial"] is not None
        keep("ratio", peer["seconds_per_trial"] / ours["seconds_per_trial"] if known else None)
        if not given.trials_only:
            cache.forget()
            keep("peak", peaks(cache, like))
            rate = product_rate(device, getattr(torch, workload.compute_dtype), given.repetitions)  # after the peaks
            keep("matrix_products_tflops", rate / 1e12)
            keep("steps", step_times(cache, like, rate, given.repetitions))
            keep("nf4_over_16bit", nf4_ratios(result["steps"]))
            if given.steps > FEW_STEPS:
                both = (configs[0], configs[0].at_other_precision)
                keep("evaluation", evaluation_figures(ours, held_out_seconds(cache, both, costs, given.repetitions)))
            profiled = drawn_configs(like, given.profiled_trials // 2)
            wall = ours["n_trials"] * ours["seconds_per_trial"]
            of_wall = {"n_trials": ours["n_trials"], "wall_seconds": wall}
            keep("busy", busy_share(cache, profiled, **of_wall) if profiled else None)
        if given.sweep:
            cache.forget()
            keep("sweep", swept(workload.base_folder, peer_rows, given.sweep, given.steps, device))
        return result | {"seconds": perf_counter() - begun}


def absolute(rows: str) -> str:
    """A file by its whole path; hub ids as they are."""
    return str(Path(rows).resolve()) if Path(rows).is_file() else rows


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The table, a line at a time."""
    yield f"{result['base']}; {result['device']}, {result['compute_dtype']}"
    if "steps" in result:
        yield from step_lines(result)
    yield from trial_lines(result)


def step_lines(result: Mapping[str, Any]) -> Iterator[str]:
    yield f"\nms a full step of {result['batch_size']} x {result['max_length_tokens']}"
    yield f"{'engine':8}{'loop':10}{'precision':10}{'median':>9}{'range':>9}{'of product rate':>17}"
    for cell in result["steps"]:
        share = f"{100 * cell['product_rate_share']:15.1f} %" if cell["product_rate_share"] is not None else ""
        fell = f"  was eager: {cell['fallback']}" if cell["fallback"] else ""
        yield (
            f"{cell['engine']:8}{cell['loop']:10}{cell['precision']:10}{cell['ms_per_step']:9.2f}"
            f"{cell['ms_per_step_range']:9.2f}{share}{fell}"
        )
    ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in result["nf4_over_16bit"].items())
    yield f"NF4 over 16 bits: {ratios}; large matrix products: {result['matrix_products_tflops']:.1f} TFLOP/s"
    peak = result["peak"]
    yield (
        f"\nPeak at {result['batch_size']} x {peak['max_length_tokens']}, NF4: standard {peak['standard_mib']:.0f} MiB"
        f", lean {peak['lean_mib']:.0f} MiB, ratio {peak['lean_over_standard']:.2f}"
    )


def trial_lines(result: Mapping[str, Any]) -> Iterator[str]:
    ours, peer = result["ours"], result["peer"]
    yield (
        f"\nOurs, {ours['n_trials']} trials of {result['n_steps']} steps, half of them NF4, evaluation and comparison "
        f"included: {ours['trials_an_hour']:.0f} trials an hour ({ours['trials_an_hour_in_last_turn']:.0f} in the last "
        "turn)"
    )
    for precision in get_args(Precision):
        parts = {k.split("_")[1]: v for k, v in ours[precision].items() if k.count("_") == 2}
        shown = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())
        yield f"  {precision:6} median {ours[precision]['median_seconds']:.2f} s: {shown}"
    if found := result.get("evaluation"):
        yield (
            f"  evaluation {found['seconds_per_trial']:.2f} s a trial: held-out loss at every rung "
            f"{found['held_out_seconds']:.2f}, half of a comparison of {found['comparison_seconds_a_pair']:.2f}"
        )
    if peer and peer["seconds_per_trial"]:
        how = "Ray Tune + Trainer + peft" if peer["with_tune"] else "Trainer + peft, without Ray Tune"
        note = f", extrapolated from {peer['n_steps']} steps" if peer["extrapolated"] else ""
        yield f"Peer ({how}): {peer['seconds_per_trial']:.1f} s a trial{note}; {peer['ms_per_step']:.0f} ms a step"
        yield f"Ratio: {result['ratio']:.1f}"
    elif peer:
        yield f"Peer: failed: {peer['runs'][0]['error']}"
    if busy := result.get("busy"):
        yield (
            f"\nA kernel ran for {100 * busy['busy_share']:.1f} % of {busy['n_trials']} trials "
            f"({busy['kernel_seconds']:.1f} of {busy['wall_seconds']:.1f} s); {busy['n_profiled_trials']} were "
            "profiled, and for so much of their time, which the profiler lengthens: "
            + ", ".join(f"{100 * one['busy_seconds'] / one['wall_seconds']:.1f} %" for one in busy["profiled"])
        )
    if "sweep" in result:
        yield f"\nWhole sweep: {json.dumps(result['sweep'])}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; unset options are chosen for the machine."""
    gpu = count_gpus() > 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if gpu else "cpu")
    parser.add_argument("--base-model", help="hub id, folder, random:FOLDER or demo")
    parser.add_argument("--data", help=f"hub id, file, demo, or {SHORT_ROWS}: made here, as long as Stanford Alpaca's")
    parser.add_argument("--trials", type=int, default=16, help="of ours; half of them baselines")
    parser.add_argument("--steps", type=int, default=200, help="of each trial")
    parser.add_argument("--peer", choices=("auto", "tune", "plain", "none"), default="auto", help="auto: Tune if there")
    parser.add_argument("--peer-trials", type=int, default=2, help="16 bits and NF4 in turn")
    parser.add_argument("--peer-steps", type=int, help="fewer than --steps: its time is extrapolated")
    parser.add_argument("--turns", type=int, default=0, help="of ours, at least as many as the peer's trials")
    parser.add_argument("--trials-only", action="store_true", help="no steps, peaks, shares of busy time")
    parser.add_argument("--repetitions", type=int, default=5, help="of each step's timing")
    parser.add_argument("--profiled-trials", type=int, default=16, help="for the busy share; 0: not measured")
    parser.add_argument(
        "--sweep", type=int, default=0, help="also a whole sweep of so many configs and their baselines"
    )
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-length-tokens", type=int, default=256)
    given = parser.parse_args(arguments)
    base = given.base_model or ("openai-community/gpt2-medium" if given.device == "cuda" else "demo")
    rows = given.data or ("tatsu-lab/alpaca" if given.device == "cuda" else "demo")
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if given.device == "cpu":
        print("On a CPU: steps are eager only, and figures are the CPU's.")
    try:
        if min(given.trials, given.steps, given.repetitions) < 1:
            raise ConfigError("trials, steps and repetitions must be at least 1")
        result = measured(given, base, rows)
    except SweepError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for line in lines(result):
        print(line)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
