"""The steps that StepGraphs capture, done on a CPU without capture: those of the eager engine."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from trainables.data.tokens import pad
from trainables.evaluation.held_out import eval_batches
from trainables.models import lora
from trainables.models.families.gpt2 import TARGETS
from trainables.training.batches import Batch, GraphInput, packed
from trainables.training.eager import EagerEngine
from trainables.training.step_graphs import StepGraphs
from trainables.values.config import TrialConfig

LONGEST = 96


@pytest.fixture(scope="module")
def rows(splits):
    return sorted(splits["train"], key=lambda row: len(row.input_ids))[:24]


def batches_of(rows, *, flat: bool) -> list[Batch]:
    batches = []
    for i in range(0, len(rows), 4):
        chosen = rows[i : i + 4]
        lengths = tuple(min(len(row.input_ids), LONGEST) for row in chosen) if flat else ()
        batches.append(Batch(*pad(chosen, max_length_tokens=LONGEST, pad_id=0, multiple=LONGEST), lengths))
    return batches


class Uncaptured:
    """StepGraphs whose steps are done as they would be captured."""

    def __init__(self, cache, config: TrialConfig, rows) -> None:
        self.base, self.config = cache.base(config.precision), config
        few = eval_batches(self.base, rows[:2])
        self.graphs = StepGraphs(self.base, config, eval_batches=few, compute_dtype="float32", pool=None, stream=None)

    def run(self, steps: Sequence[GraphInput]) -> list[float]:
        losses = []
        with self.graphs._attached() as model:
            for shape, inputs in steps:
                self.graphs._learning_rate.fill_(self.config.learning_rate)
                self.graphs._step(model.train(), shape, inputs)
                losses.append(float(self.graphs.loss_nats))
        return losses

    def fresh(self, **other) -> list[torch.Tensor]:
        return [w.detach().clone() for w in lora.fresh_matrices(self.base, replace(self.config, **other)).values()]


@pytest.mark.parametrize(
    ("loop", "rank", "dropout", "flat"),
    [("standard", 5, 0.3, False), ("lean", 16, 0.0, False), ("lean", 5, 0.3, True), ("lean", 70, 0.0, True)],
)
def test_losses_weights_and_moments_are_those_of_the_eager_engine_also_from_a_state_on(
    cache, small_config, rows, loop, rank, dropout, flat
):
    recipe = {"loop": loop, "rank": rank, "alpha": 10, "dropout": dropout, "learning_rate": 5e-3}
    config = small_config(targets=TARGETS, batch_size=4, **recipe)
    batches = batches_of(rows, flat=flat)
    steps = [packed(batch, loop, longest=LONGEST) for batch in batches]
    assert any(shape.n_flat for shape, _ in steps) == flat
    ours = Uncaptured(cache, config, rows)
    fresh, found = ours.fresh(), ours.fresh()
    ours.graphs.load(config, ours.fresh(rank=ours.graphs.key.rank))
    ours.run(steps[:1])  # of another trial, that fills what is padding of this
    ours.graphs.load(config, fresh)
    losses = ours.run(steps[:3])
    state = ours.graphs.state(fresh)
    losses += ours.run(steps[3:])
    ours.graphs.store(found)
    ended = ours.graphs.state(fresh)

    model = lora.attach(ours.base, config, base_name="tiny")
    try:
        engine = EagerEngine(model, config, compute_dtype="float32", device="cpu")
        expected = engine.run(batches)
        theirs = engine.state()
        weights = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    finally:
        lora.detach(model)
    torch.testing.assert_close(torch.tensor(losses), expected, rtol=1e-5, atol=0)
    for mine, weight, first in zip(found, weights, fresh, strict=True):
        torch.testing.assert_close(mine, weight, rtol=1e-3, atol=2e-4)  # of updates of 5e-3
        assert not torch.equal(mine, first)
    for name in ("first_moments", "second_moments"):
        np.testing.assert_allclose(getattr(ended, name), getattr(theirs, name), rtol=1e-3, atol=1e-6)
    assert (ended.n_updates, ended.n_steps) == (theirs.n_updates, theirs.n_steps)

    ours.graphs.load(replace(config, seed=9), fresh)
    ours.run(steps[:2])
    ours.graphs.load(config, fresh)
    ours.graphs.restore(state, fresh)
    assert ours.run(steps[3:]) == losses[3:], "from a state on, to the bit"


@pytest.mark.parametrize("loop", ["standard", "lean"])
def test_matrices_that_the_loss_does_not_depend_on_stay_as_they_are_as_in_the_eager_engine(
    cache, small_config, rows, loop
):
    config = small_config(targets=TARGETS, batch_size=4, loop=loop, learning_rate=5e-3)
    batches = batches_of(rows[:12], flat=False)
    ours = Uncaptured(cache, config, rows)
    fresh, found = ours.fresh(), ours.fresh()
    unused = ours.base.transformer.h[-1].mlp
    hook = unused.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    try:
        ours.graphs.load(config, fresh)
        losses = ours.run([packed(batch, loop, longest=LONGEST) for batch in batches])
        ours.graphs.store(found)
        model = lora.attach(ours.base, config, base_name="tiny")
        expected = EagerEngine(model, config, compute_dtype="float32", device="cpu").run(batches)
    finally:
        hook.remove()
        lora.detach(model)
    torch.testing.assert_close(torch.tensor(losses), expected, rtol=1e-5, atol=0)
    is_unused = [".h.1.mlp." in name for name in lora.blank_matrices(ours.base, config)]
    assert [torch.equal(mine, first) for mine, first in zip(found, fresh, strict=True)] == is_unused
    assert any(is_unused)


def test_what_optimizer_and_scaler_keep_is_there_before_a_step_and_moves_nothing(cache, small_config):
    """A captured step would make it anew in each replay: the loss scale of float16, too."""
    base, config = cache.base("16bit"), small_config()
    graphs = StepGraphs(base, config, eval_batches=None, compute_dtype="float16", pool=None, stream=None)
    moments = [graphs._slot[name] for name in ("exp_avg", "exp_avg_sq")]
    assert all(moment.shape == graphs._whole.shape and not moment.any() for moment in moments)
    assert graphs._scaler._scale is not None
    assert graphs.loss_scale == 2.0**16
    assert not graphs._whole.any()
    assert graphs._whole.grad is None
