"""The contract of Engine, held by every engine on a real GPU."""

import pytest
import torch

from tests.support.engine_contract import check_engine
from trainables.models import lora
from trainables.models.families.gpt2 import TARGETS
from trainables.training.eager import EagerEngine
from trainables.training.engine import Engine
from trainables.training.graph import GraphEngine
from trainables.worker_cache import WorkerCache

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]


@pytest.mark.parametrize("loop", ["standard", "lean"])
@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_the_eager_engine_keeps_the_contract(wide, small_config, precision, loop):
    cache = WorkerCache(wide, "cuda")
    config = small_config(
        precision=precision, loop=loop, targets=TARGETS, dropout=0.0, max_steps=16, learning_rate=3e-3
    )
    attached = []

    def start() -> Engine:
        if attached:
            lora.detach(attached.pop())
        attached.append(lora.attach(cache.base(precision), config, base_name="wide"))
        return EagerEngine(attached[0], config, compute_dtype="float32", device="cuda")

    try:
        check_engine(start, cache.batches(config).batches, cache.held_out(precision))
    finally:
        lora.detach(attached.pop())


@pytest.mark.parametrize("loop", ["standard", "lean"])
@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_the_graph_engine_keeps_the_contract(wide, small_config, precision, loop):
    cache = WorkerCache(wide, "cuda")
    config = small_config(
        engine="graph", precision=precision, loop=loop, targets=TARGETS, dropout=0.0, max_steps=16, learning_rate=3e-3
    )
    steps = cache.batches(config).packed(loop)
    graphs = cache.graphs(config, [shape for shape, _ in steps])

    def start() -> Engine:
        return GraphEngine(cache.fresh_matrices(config).values(), config, graphs)

    check_engine(start, steps, cache.held_out(precision))
