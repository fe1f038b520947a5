"""The contract of Engine, held by every engine on a real GPU."""

import pytest
import torch

from tests.support.engine_contract import check_engine
from trainables.models import lora
from trainables.models.families.gpt2 import TARGETS
from trainables.training.batches import Batches, BatchPlan
from trainables.training.eager import EagerEngine
from trainables.training.engine import Engine
from trainables.training.graph import GraphEngine
from trainables.worker_cache import WorkerCache

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]


FLAT = {"batch_size": 12, "max_length_tokens": 96}
"""Batches of so many rows lie one after the other: fewer are as many tokens in captured steps."""


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
        check_engine(start, cache.batches(config).batches, cache.held_out((precision, ())))
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

    check_engine(start, steps, cache.held_out((precision, ())))


@pytest.mark.parametrize("precision", ["16bit", "nf4"])
@pytest.mark.parametrize(
    "recipe",
    [
        {"schedule": "cosine", "warmup_share": 0.25},
        {"schedule": "linear", "gradient_checkpointing": True},
        {"gradient_checkpointing": True, "loop": "standard"},
        FLAT,
        {"gradient_checkpointing": True, **FLAT},
    ],
)
def test_a_graph_takes_the_eager_steps_of_any_recipe_under_dropout(wide, small_config, precision, recipe):
    """With a step's own rate and masks at each replay, also where the backward pass runs the blocks again.

    The eager steps are of padded rows, also where the captured ones lay them one after the other.
    """
    cache = WorkerCache(wide, "cuda")
    config = small_config(
        **{"loop": "lean", "targets": TARGETS, "dropout": 0.05, "max_steps": 8, "precision": precision} | recipe
    )
    model = lora.attach(cache.base(precision), config, base_name="wide")
    try:
        eager = EagerEngine(model, config, compute_dtype="float32", device="cuda")
        expected = eager.run(cache.batches(config).batches)
        weights = [p.detach().clone() for p in eager.parameters]
    finally:
        lora.detach(model)
    is_flat = recipe.items() >= FLAT.items()
    steps = Batches(BatchPlan.of(config), cache.rows["train"], pad_id=0, lie_flat=is_flat).packed(config.loop)
    assert any(shape.n_flat for shape, _ in steps) == is_flat
    graphs = cache.graphs(config, [shape for shape, _ in steps])
    graph = GraphEngine(cache.fresh_matrices(config).values(), config, graphs)
    torch.testing.assert_close(graph.run(steps), expected, rtol=1e-5, atol=0)
    for found, weight in zip(graph.parameters, weights, strict=True):  # AdamW may turn a gradient of nearly 0 around
        assert (found - weight).norm() <= 1e-3 * weight.norm()


@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_the_second_replay_with_checkpointing_has_the_weights_of_one_without(wide, small_config, precision):
    cache = WorkerCache(wide, "cuda")
    found = {}
    for checkpointing in (False, True):
        config = small_config(
            engine="graph", loop="lean", targets=TARGETS, dropout=0.05, max_steps=2, precision=precision,
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        steps = cache.batches(config).packed("lean")
        graphs = cache.graphs(config, [shape for shape, _ in steps])
        engine = GraphEngine(cache.fresh_matrices(config).values(), config, graphs)
        engine.run(steps)
        found[checkpointing] = engine.state()
    for name in ("weights", "first_moments"):
        torch.testing.assert_close(
            torch.from_numpy(getattr(found[True], name)),
            torch.from_numpy(getattr(found[False], name)),
            rtol=1e-5,
            atol=1e-8,
        )


def test_eight_bit_moments_train_and_go_on_from_a_checkpoint(wide, small_config):
    cache = WorkerCache(wide, "cuda")
    config = small_config(optimizer="adamw_8bit", loop="lean", targets=TARGETS, rank=32, dropout=0.05, max_steps=8)
    batches = cache.batches(config).batches
    finals = []
    for n_first in (8, 4):
        model = lora.attach(cache.base("16bit"), config, base_name="wide")
        engine = EagerEngine(model, config, compute_dtype="float32", device="cuda")
        engine.run(batches[:n_first])
        state = engine.state()
        lora.detach(model)
        model = lora.attach(cache.base("16bit"), config, base_name="wide")
        engine = EagerEngine(model, config, compute_dtype="float32", device="cuda")
        engine.restore(state)
        if n_first < 8:
            engine.run(batches[n_first:])
        finals.append(torch.from_numpy(engine.state().weights))
        lora.detach(model)
    torch.testing.assert_close(*finals, rtol=1e-5, atol=1e-7)
    assert state.quantized
