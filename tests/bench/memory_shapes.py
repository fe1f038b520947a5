"""Measure the peak memory of training steps over many shapes on one GPU, for trainables/predicted_memory.py.

python tests/bench/memory_shapes.py BASE_FOLDER SHAPES.jsonl

BASE_FOLDER has GPT-2's config and tokenizer; weights are random (bytes do not depend on values). Shapes
are drawn from a seeded generator; every fourth is marked held_out, for a fit that is yet to be made without it.
"""

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from time import perf_counter

import torch

from trainables import adapter, base_model, memory
from trainables.config import TARGETS, TrialConfig, Workload
from trainables.training import EagerEngine
from trainables.trial import _owners

N_SHAPES = 36
MAX_LOGIT_TOKENS = 16 * 1024


def shapes(seed: int = 0) -> list[dict]:
    """Shapes over ranks 1-64, all target sets, lengths 128-1024, batches 1-16, dropout on and off."""
    random = Random(seed)
    sets = [[t for i, t in enumerate(TARGETS) if bits >> i & 1] for bits in range(1, 16)]
    found = []
    for n in range(N_SHAPES):
        found.append(
            {
                "rank": random.choice([1, 2, 4, 8, 16, 32, 64]),
                "targets": sets[n % len(sets)],
                "max_length_tokens": random.choice([128, 192, 256, 384, 512, 768, 1024]),
                "batch_size": random.choice([1, 2, 3, 4, 6, 8, 12, 16]),
                "dropout": random.choice([0.0, 0.05]),
                "held_out": n % 4 == 3,
            }
        )
    corner = {"targets": list(TARGETS), "max_length_tokens": 1024, "batch_size": 16, "dropout": 0.05, "held_out": True}
    return [*found, corner | {"rank": 64}, corner | {"rank": 1, "targets": ["attn.c_attn"], "batch_size": 1}]


def measure(base, config: TrialConfig, dtype: str, *, attribute: bool) -> dict:
    """Peak of one shape; with its breakdown where asked for."""
    ids = torch.randint(base.config.vocab_size, (config.batch_size, config.max_length_tokens))
    model = adapter.attach(base, config, base_name="random")
    try:
        engine = EagerEngine(model, config, compute_dtype=dtype, device="cuda")
        engine.step(ids, ids)
        if attribute:
            return asdict(memory.peak_of(lambda: engine.step(ids, ids), "cuda", lambda: _owners(model, engine)))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        engine.step(ids, ids)
        engine.step(ids, ids)
        return {"allocated_mib": torch.cuda.max_memory_allocated() / memory.MIB}
    finally:
        adapter.detach(model)


def main(folder: str, out: str, dtype: str = "bfloat16") -> None:
    warnings.filterwarnings("ignore")
    found = base_model.find(f"random:{folder}", Path(mkdtemp()))
    blank = dict.fromkeys(("base_fingerprint", "data", "data_folder", "data_digest"), "")
    workload = Workload(
        base_model=found.source, base_folder=str(found.folder), weights="random", compute_dtype=dtype, **blank
    )
    start = perf_counter()
    with open(out, "w") as file:
        for precision in ("16bit", "nf4"):
            base = base_model.load(workload, precision, "cuda")
            for loop in ("standard", "lean"):
                for n, shape in enumerate(shapes()):
                    values = {k: v for k, v in shape.items() if k != "held_out"}
                    config = TrialConfig.from_dict({**values, "alpha": 16, "precision": precision, "loop": loop})
                    row = measure(base, config, dtype, attribute=n % 3 == 0)
                    file.write(json.dumps({**shape, "precision": precision, "loop": loop, **row}) + "\n")
                    file.flush()
            del base
            torch.cuda.empty_cache()
    print(f"{2 * 2 * len(shapes())} shapes in {perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
