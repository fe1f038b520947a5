"""How far trainables/cost/predicted_memory.py is off, over many shapes of GPT-2 Medium on one GPU.

python tests/bench/memory_shapes.py --seed 1 --output FILE    measure (a GPU), then print the table
python tests/bench/memory_shapes.py --from FILE...            print the table of earlier runs (no GPU)

Without a GPU the second form is taken, of the recorded runs beside this file. Shapes are drawn from the seed; the
predictor's constants were set with those of seed 0 in view, so any other seed gives shapes that it has not seen.
Weights are random: bytes do not depend on values. Recorded runs over model families (tests/bench/memory_families.py)
and peaks that others published follow.
"""

import argparse
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, get_args

from tests.bench import memory_families, memory_published
from trainables.cost.device import count_gpus
from trainables.cost.predicted_memory import MAX_ERROR_MIB, MAX_ERROR_SHARE, breakdown_of, total_mib
from trainables.cost.recipe import recipe_of
from trainables.cost.shape import Shape
from trainables.models.families.gpt2 import HUB_SHAPES, TARGETS, sized
from trainables.values.config import ComputeDtype, Loop, Precision, TrialConfig
from trainables.values.workload import Workload

RECORDED = tuple(sorted(Path(__file__).parent.glob("memory_shapes_*.jsonl")))
"""Earlier runs."""
FITTED_SEED = 0
N_DRAWN = 36
TARGET_SETS = [[t for i, t in enumerate(TARGETS) if bits >> i & 1] for bits in range(1, 16)]
CORNERS = (
    {"rank": 64, "targets": list(TARGETS), "max_length_tokens": 1024, "batch_size": 16, "dropout": 0.05},
    {"rank": 1, "targets": ["attn.c_attn"], "max_length_tokens": 1024, "batch_size": 1, "dropout": 0.05},
)
Values = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Measured peaks of one model on one device; a file holds the other fields in its first line.

    Attributes:
        seed: of the drawn shapes.
        peaks_mib: each config with its measured peak.
        protocol: version of the measurement protocol. Under 1 adapter products were in float32, and dropout kept masks.
    """

    shape: Shape
    dtype: ComputeDtype
    device: str
    seed: int
    peaks_mib: tuple[tuple[TrialConfig, float], ...]
    protocol: int = 1

    def predicted_mib(self, config: TrialConfig) -> float:
        """Predicted peak of a config of this run."""
        recipe = recipe_of(config, self.dtype)
        if self.protocol == 1:
            recipe = replace(recipe, adapter_dtype="float32", keeps_masks=True, loss_in_place=False)
        return total_mib(breakdown_of(self.shape, recipe))


def shapes(seed: int) -> list[Values]:
    """Ranks 1-64, all sets of targets, lengths 128-1024, batches 1-16, dropout on and off.

    None of another seed is one of FITTED_SEED.
    """
    random = Random(seed)
    if seed == FITTED_SEED:
        return [*(_draw(random, TARGET_SETS[n % 15]) for n in range(N_DRAWN)), *CORNERS]
    seen = shapes(FITTED_SEED)
    longest, shortest = {"max_length_tokens": 1024, "batch_size": 16}, {"max_length_tokens": 128, "batch_size": 1}
    found: list[Values] = []
    while len(found) < N_DRAWN + 2:
        drawn = _draw(random, TARGET_SETS[len(found) % 15])
        drawn |= {N_DRAWN: longest, N_DRAWN + 1: shortest}.get(len(found), {})
        if drawn not in seen and drawn not in found:
            found.append(drawn)
    return found


def _draw(random: Random, targets: list[str]) -> Values:
    return {
        "rank": random.choice([1, 2, 4, 8, 16, 32, 64]),
        "targets": targets,
        "max_length_tokens": random.choice([128, 192, 256, 384, 512, 768, 1024]),
        "batch_size": random.choice([1, 2, 3, 4, 6, 8, 12, 16]),
        "dropout": random.choice([0.0, 0.05]),
    }


def measured(shape: Shape, seed: int, dtype: ComputeDtype, device: str) -> Iterator[Values]:
    """Lines of a file: what was measured on, then one config and its peak each."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from trainables.cost.device import device_name
    from trainables.models import base_model

    warnings.filterwarnings("ignore")
    head = {"shape": sizes_of(shape), "dtype": dtype, "device": device_name(device), "seed": seed}
    yield head | {"protocol": 2}
    with TemporaryDirectory() as folder:
        GPT2LMHeadModel(GPT2Config(**sizes_of(shape))).save_pretrained(folder)
        blank = dict.fromkeys(("base_model", "base_fingerprint", "data", "data_folder", "data_digest"), "")
        workload = Workload(base_folder=folder, weights="random", compute_dtype=dtype, **blank)
        for precision in get_args(Precision):
            base = base_model.load(workload, precision, device)
            for loop in get_args(Loop):
                for values in shapes(seed):
                    line = {**values, "precision": precision, "loop": loop}
                    yield line | {"peak_memory_mib": _peak_mib(base, config_of(line), dtype, device)}
            del base
            torch.cuda.empty_cache()


def sizes_of(shape: Shape) -> dict[str, int]:
    """The sizes of a GPT-2 by the names of its config."""
    sizes = {name: getattr(shape, name) for name in ("n_layer", "n_head", "vocab_size", "n_positions")}
    return sizes | {"n_embd": shape.hidden_size}


def _peak_mib(base: Any, config: TrialConfig, dtype: ComputeDtype, device: str) -> float:
    import torch

    from trainables.cost import memory
    from trainables.models import lora
    from trainables.training.eager import EagerEngine

    ids = torch.randint(base.config.vocab_size, (config.batch_size, config.max_length_tokens))
    model = lora.attach(base, config, base_name="random")
    try:
        engine = EagerEngine(model, config, compute_dtype=dtype, device=device)
        engine.step(ids, ids)
        return memory.peak_of(lambda: engine.step(ids, ids), device).allocated_mib
    finally:
        lora.detach(model)


def config_of(line: Values) -> TrialConfig:
    """The config of a line; alpha has no bytes."""
    return TrialConfig.from_dict({k: v for k, v in line.items() if k != "peak_memory_mib"} | {"alpha": 16})


def read(path: Path) -> Run:
    """A run from its file."""
    head, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    peaks = tuple((config_of(line), line["peak_memory_mib"]) for line in lines)
    return Run(**head | {"shape": sized(**head["shape"]), "peaks_mib": peaks})


def tolerance_mib(peak_mib: float) -> float:
    """What a prediction of a peak is allowed to be off."""
    return max(MAX_ERROR_SHARE * peak_mib, MAX_ERROR_MIB)


def errors(run: Run) -> list[Values]:
    """For each precision and loop, and for all together, how far the predictions are off."""
    cells: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for config, peak in run.peaks_mib:
        error = abs(run.predicted_mib(config) - peak)
        for cell in ((config.precision, config.loop), ("all", "all")):
            cells.setdefault(cell, []).append((error, peak))
    cells["all", "all"] = cells.pop(("all", "all"))  # last
    return [
        {
            "precision": precision,
            "loop": loop,
            "n_shapes": len(found),
            "median_per_cent": 100 * median(error / peak for error, peak in found),
            "worst_per_cent": 100 * max(error / peak for error, peak in found),
            "worst_mib": max(error for error, _ in found),
            "n_outside": sum(error > tolerance_mib(peak) for error, peak in found),
        }
        for (precision, loop), found in cells.items()
    ]


def show(run: Run) -> None:
    """The table, and the same as one line of JSON."""
    about = "with which the constants were set" if run.seed == FITTED_SEED else "unseen when the constants were set"
    print(f"Predicted against measured peak, {run.dtype} on {run.device}; shapes of seed {run.seed}, {about}.")
    print(f"outside: off by more than the larger of {MAX_ERROR_SHARE:.0%} and {MAX_ERROR_MIB:g} MiB\n")
    print("precision  loop      shapes  median %  worst %  worst MiB  outside")
    found = errors(run)
    for e in found:
        print(
            f"{e['precision']:9}  {e['loop']:8}  {e['n_shapes']:6}  {e['median_per_cent']:8.2f}  "
            f"{e['worst_per_cent']:7.2f}  {e['worst_mib']:9.1f}  {e['n_outside']:7}"
        )
    print(json.dumps({"seed": run.seed, "device": run.device, "dtype": run.dtype, "errors": found}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="sources", type=Path, nargs="+", help="print these files' tables only")
    parser.add_argument("--seed", type=int, default=1, help="of the shapes (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("memory_shapes.jsonl"), help="of what is measured")
    parser.add_argument("--base", choices=HUB_SHAPES, default="gpt2-medium")
    parser.add_argument("--dtype", choices=get_args(ComputeDtype), default="bfloat16")
    asked = parser.parse_args()
    if asked.sources is None and not count_gpus():
        print("No GPU here: recorded runs.\n")
        asked.sources = RECORDED
    if asked.sources is None:
        start = perf_counter()
        with asked.output.open("w", encoding="utf-8") as file:
            for line in measured(HUB_SHAPES[asked.base], asked.seed, asked.dtype, "cuda"):
                print(json.dumps(line), file=file, flush=True)
        print(f"measured in {perf_counter() - start:.0f} s: {asked.output}\n")
    for path in asked.sources or [asked.output]:
        show(read(path))
        print()
    for path in memory_families.RECORDED:
        print(f"Predicted against measured peak of model families, {path.stem}")
        memory_families.show(memory_families.read(path))
        print()
    memory_published.show()


if __name__ == "__main__":
    main()
