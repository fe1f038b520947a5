"""What 4 bits save, how far predictions are off, and how far equal trials differ: `make bench ARGS=measurement`

python tests/bench/measurement.py --base-model random:FOLDER --data ROWS

Prints three tables and, as its last line, one JSON object. Without a GPU it takes the demo on the CPU, where
memory is that of live storages and nothing is predicted. Neither Ray nor MLflow is needed.
"""

import argparse
import hashlib
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, get_args

import numpy as np
from transformers.utils import logging

from trainables.comparison.compare import compare
from trainables.cost.device import count_gpus, native_dtype
from trainables.cost.predicted_memory import MAX_ERROR_MIB, MAX_ERROR_SHARE, predicted_peak_mib
from trainables.models import inputs
from trainables.models.families import shape_in
from trainables.models.families.gpt2 import TARGETS
from trainables.trial import Trial
from trainables.values.config import EngineName, Loop, Precision, TrialConfig
from trainables.values.errors import SweepError, TrialFailed
from trainables.values.findings import flat
from trainables.values.results import Cost, Measurement
from trainables.worker_cache import WorkerCache

SHAPES: tuple[Mapping[str, Any], ...] = (
    {"rank": 1, "targets": ("mlp.c_fc",), "max_length_tokens": 128, "batch_size": 1},
    {"rank": 16, "targets": ("attn.c_proj",), "max_length_tokens": 384, "batch_size": 2},
    {"rank": 32, "targets": ("attn.c_attn", "mlp.c_proj"), "max_length_tokens": 512, "batch_size": 8},
    {"rank": 4, "targets": TARGETS, "max_length_tokens": 768, "batch_size": 3, "dropout": 0.0},
    {"rank": 64, "targets": TARGETS, "max_length_tokens": 1024, "batch_size": 12},
)
"""Where the prediction is tried, beside the given shape; none is among those it was set with."""
COSTS = ("peak_memory_mib", "reserved_memory_mib", "seconds_per_step", "tokens_per_second")
PARTS = ("base_weights", "quantization_constants", "adapter", "gradients", "optimizer", "activations", "rest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One of several equal trials.

    Attributes:
        last: at its last rung.
        files: its adapter.
    """

    cost: Cost
    last: Measurement
    files: Mapping[str, bytes]

    @property
    def figures(self) -> dict[str, float]:
        """Every metric by its name; the step's noise within the trial as `seconds_per_step_p90_over_p10`."""
        losses = {"train_loss_nats": self.last.train_loss_nats, "eval_loss_nats": self.last.eval_loss_nats}
        costs = {name: getattr(self.cost, name) for name in COSTS}
        noise = self.cost.seconds_per_step_p90 / self.cost.seconds_per_step_p10
        return losses | costs | {"seconds_per_step_p90_over_p10": noise} | asdict(self.cost.breakdown)


def cost_of(config: TrialConfig, cache: WorkerCache) -> Cost | None:
    """The cost key of a config, measured now; None where memory runs out."""
    try:
        trial = Trial(config, cache)
    except TrialFailed:
        return None
    trial.close()
    return trial.cost


def costs(cache: WorkerCache, configs: Sequence[TrialConfig]) -> list[tuple[TrialConfig, Cost]]:
    """Each config at both precisions in both loops, but those for which memory runs out."""
    cells = [
        replace(config, precision=precision, loop=loop)
        for precision in get_args(Precision)[::-1]
        for loop in get_args(Loop)
        for config in configs
    ]
    found = ((config, cost_of(config, cache)) for config in cells)
    return [(config, cost) for config, cost in found if cost]


def memory(cells: Sequence[tuple[TrialConfig, Cost]]) -> dict[str, Any]:
    """Peaks with their parts by precision and loop, and what NF4 saves in each loop."""
    peaks = {(config.precision, config.loop): cost for config, cost in cells}
    table = [
        {
            "precision": config.precision,
            "loop": config.loop,
            "peak_memory_mib": cost.peak_memory_mib,
            **asdict(cost.breakdown),
            "named_per_cent": 100 * (1 - cost.breakdown.rest_mib / cost.peak_memory_mib),
            "sum_off_per_cent": 100 * abs(sum(asdict(cost.breakdown).values()) / cost.peak_memory_mib - 1),
            "seconds_per_step": cost.seconds_per_step,
        }
        for config, cost in cells
    ]
    saved = {}
    for loop in get_args(Loop):
        if ("nf4", loop) in peaks and ("16bit", loop) in peaks:
            full = peaks["16bit", loop].peak_memory_mib
            mib = full - peaks["nf4", loop].peak_memory_mib
            saved[loop] = {"mib": mib, "per_cent": 100 * mib / full}
    return {"cells": table, "saved_by_nf4": saved}


def prediction(cache: WorkerCache, cells: Sequence[tuple[TrialConfig, Cost]]) -> dict[str, Any] | None:
    """How far predicted peaks are off; None on a CPU, for which there are none, and for other models."""
    shape = shape_in(Path(cache.workload.base_folder))
    if cache.device == "cpu" or shape is None:
        return None
    dtype = cache.workload.compute_dtype
    off = [
        (predicted_peak_mib(shape, config, dtype) - cost.peak_memory_mib, cost.peak_memory_mib)
        for config, cost in cells
    ]
    return {
        "n_shapes": len(off),
        "median_per_cent": 100 * median(abs(error) / peak for error, peak in off),
        "worst_per_cent": 100 * max(abs(error) / peak for error, peak in off),
        "worst_mib": max(abs(error) for error, _ in off),
        "n_outside": sum(abs(error) > max(MAX_ERROR_SHARE * peak, MAX_ERROR_MIB) for error, peak in off),
    }


def runs(config: TrialConfig, cache: WorkerCache, n_runs: int) -> list[Run]:
    """The same trial so many times, its cost measured anew each time."""
    found = []
    for _ in range(n_runs):
        trial = Trial(config, cache)
        try:
            *_, last = trial.measurements()
            found.append(Run(cost=trial.cost, last=last, files=trial.adapter_files()))
        finally:
            trial.close()
    return found


def spread(figures: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Of each metric over equal trials: median, largest less smallest, and of times p90 / p10."""
    found = {}
    for name in figures[0]:
        values = np.array([one[name] for one in figures])
        found[name] = {"median": float(np.median(values)), "range": float(np.ptp(values))}
        if name.startswith("seconds"):
            low, high = np.percentile(values, [10, 90])
            found[name]["p90_over_p10"] = float(high / low)
    return found


def spreads(cache: WorkerCache, config: TrialConfig, n_runs: int) -> dict[str, Any]:
    """Of every metric at both precisions, and of the similarity of each 4-bit run to a baseline run of its own."""
    of = {p: runs(replace(config, precision=p), cache, n_runs) for p in get_args(Precision)}
    pairs = zip(of["nf4"], of["16bit"], strict=True)
    compared = [flat(compare(cache, nf4=nf4.files, baseline=baseline.files)) for nf4, baseline in pairs]
    kept = [{name: x for name, x in one.items() if not name.startswith("n_")} for one in compared]
    return {
        "n_runs": n_runs,
        "n_steps": config.max_steps,
        "n_distinct_adapters": {
            p: len({hashlib.sha256(b"".join(run.files.values())).digest() for run in found}) for p, found in of.items()
        },
        **{p: spread([run.figures for run in found]) for p, found in of.items()},
        "similarity": spread(kept),
    }


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The tables, a line at a time."""
    yield f"{result['base']}; {result['device']}, {result['compute_dtype']}; {result['shape']}"
    cells = result["memory"]["cells"]
    yield "\nPeak memory of a full step, MiB (rest: by difference; temporary results, workspaces, rounding)"
    yield f"{'':26}" + "".join(f"{cell['precision'] + ' ' + cell['loop']:>16}" for cell in cells)
    for name in ("peak_memory_mib", *(f"{part}_mib" for part in PARTS)):
        yield f"{name.removesuffix('_mib'):26}" + "".join(f"{cell[name]:16.1f}" for cell in cells)
    yield f"{'all parts but rest, %':26}" + "".join(f"{cell['named_per_cent']:16.1f}" for cell in cells)
    yield f"{'sum off the peak, %':26}" + "".join(f"{cell['sum_off_per_cent']:16.3f}" for cell in cells)
    yield f"{'ms a step':26}" + "".join(f"{1000 * cell['seconds_per_step']:16.1f}" for cell in cells)
    for loop, saved in result["memory"]["saved_by_nf4"].items():
        yield f"NF4 saves in the {loop} loop: {saved['mib']:.1f} MiB, {saved['per_cent']:.1f} % of the peak at 16 bits"
    off = result["prediction"]
    yield (
        f"\nPredicted peak: off by {off['median_per_cent']:.2f} % in the median, at worst by "
        f"{off['worst_per_cent']:.2f} % and, of another shape perhaps, by {off['worst_mib']:.1f} MiB; "
        f"{off['n_outside']} of {off['n_shapes']} shapes off by "
        f"more than the larger of {100 * MAX_ERROR_SHARE:.0f} % and {MAX_ERROR_MIB:.0f} MiB"
        if off
        else "\nPredicted peak: only for GPT-2 on a GPU"
    )
    found = result["spread"]
    yield f"\n{found['n_runs']} equal trials of {found['n_steps']} steps; range: largest less smallest"
    for group in (*get_args(Precision), "similarity"):
        about = "" if group == "similarity" else f", {found['n_distinct_adapters'][group]} distinct adapters"
        yield f"{group + about:44}{'median':>12}{'range':>12}{'p90/p10':>9}"
        shown = {n: one for n, one in found[group].items() if not n.endswith(("_low", "_high")) and n[:-4] not in PARTS}
        for name, one in shown.items():
            ratio = f"{one['p90_over_p10']:9.3f}" if "p90_over_p10" in one else ""
            yield f"  {name:42}{one['median']:12.6g}{one['range']:12.3g}{ratio}"


def measured(base: str, rows: str, device: str, config: TrialConfig, n_runs: int) -> dict[str, Any]:
    """Everything, as the JSON object has it."""
    start = perf_counter()
    with TemporaryDirectory(prefix="qlora-sweep-") as cache:
        cache = WorkerCache(inputs.fetch(base, rows, Path(cache)).workload(native_dtype(device)), device)
        cells = costs(cache, [config])
        tried = costs(cache, [replace(config, **shape) for shape in SHAPES]) if device == "cuda" else []
        repeated = spreads(cache, config, n_runs)
        names = ("rank", "targets", "batch_size", "max_length_tokens", "dropout", "engine")
        return {
            "base": cache.workload.base_caption,
            "device": cells[0][1].device,
            "compute_dtype": cache.workload.compute_dtype,
            "shape": {name: config.to_dict()[name] for name in names},
            "memory": memory(cells),
            "prediction": prediction(cache, [*cells, *tried]),
            "spread": repeated,
            "seconds": perf_counter() - start,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; unset options are chosen for the machine."""
    gpu = count_gpus() > 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if gpu else "cpu")
    parser.add_argument("--base-model", help="hub id, folder, random:FOLDER or demo")
    parser.add_argument("--data", help="hub id, file or demo")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-length-tokens", type=int, default=256)
    parser.add_argument("--engine", choices=get_args(EngineName), default="eager")
    parser.add_argument("--runs", type=int, default=5, help="equal trials")
    parser.add_argument("--steps", type=int, default=24, help="of each of them")
    given = parser.parse_args(arguments)
    base = given.base_model or ("openai-community/gpt2-medium" if given.device == "cuda" else "demo")
    rows = given.data or ("tatsu-lab/alpaca" if given.device == "cuda" else "demo")
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if given.device == "cpu":
        print("On a CPU: memory is that of live storages, and time is the CPU's.")
    try:
        config = TrialConfig(
            precision="16bit",
            rank=given.rank,
            alpha=16,
            batch_size=given.batch_size,
            max_length_tokens=given.max_length_tokens,
            max_steps=given.steps,
            engine=given.engine,
        )
        result = measured(base, rows, given.device, config, given.runs)
    except SweepError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for line in lines(result):
        print(line)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
