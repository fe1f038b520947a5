"""The contract of Engine where a CPU can run it; tests/gpu/test_gpu_engine.py holds every engine to it on a GPU."""

import numpy as np
import pytest
import torch

from tests.support.engine_contract import check_engine
from trainables.evaluation.held_out import eval_batches
from trainables.models import lora
from trainables.models.families.gpt2 import TARGETS
from trainables.training.batches import Batches, BatchPlan
from trainables.training.eager import EagerEngine
from trainables.training.engine import flattened, joined, parts_of, unflatten
from trainables.training.optimizers import adamw


@pytest.mark.parametrize("loop", ["standard", "lean"])
@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_the_eager_engine_keeps_the_contract(cache, small_config, splits, precision, loop):
    config = small_config(precision=precision, loop=loop, targets=TARGETS, dropout=0.0, max_steps=8, learning_rate=3e-3)
    base = cache.base(precision)
    attached = []

    def start() -> EagerEngine:
        if attached:
            lora.detach(attached.pop())
        attached.append(lora.attach(base, config, base_name="tiny"))
        return EagerEngine(attached[0], config, compute_dtype="float32", device="cpu")

    batches = Batches(BatchPlan.of(config), splits["train"], pad_id=0, lie_flat=False).batches
    try:
        check_engine(start, batches, eval_batches(base, splits["validation"][:8]))
    finally:
        lora.detach(attached.pop())


def test_an_update_of_joined_matrices_is_that_of_each_bit_by_bit():
    drawn = {"a": torch.randn(4, 6), "b": torch.randn(5, 4)}
    alone = [torch.nn.Parameter(matrix.clone()) for matrix in drawn.values()]
    whole, parts = joined(drawn)
    assert list(parts) == list(drawn)
    optimizers = adamw(alone, 1e-2), adamw([whole], 1e-2)
    for n in range(3):
        gradients = [torch.randn(m.shape, generator=torch.Generator().manual_seed(n)) for m in alone]
        for matrix, gradient in zip(alone, gradients, strict=True):
            matrix.grad = gradient
        whole.grad = torch.cat([gradient.flatten() for gradient in gradients])
        for optimizer in optimizers:
            optimizer.step()
    for matrix, part, first in zip(alone, parts.values(), drawn.values(), strict=True):
        assert torch.equal(matrix, part)
        assert not torch.equal(part, first)
    moments = parts_of(optimizers[1].state[whole]["exp_avg"], alone)
    for matrix, moment in zip(alone, moments, strict=True):
        assert torch.equal(moment, optimizers[0].state[matrix]["exp_avg"])


def test_a_vector_of_all_elements_can_be_read_back():
    tensors = [torch.arange(6.0).view(2, 3), torch.tensor(7.0), -torch.ones(1, 4)]
    vector = flattened(tensors)
    np.testing.assert_array_equal(vector, [0, 1, 2, 3, 4, 5, 7, -1, -1, -1, -1])
    copies = [torch.full_like(tensor, 9.0) for tensor in tensors]
    unflatten(vector, copies)
    assert all(torch.equal(a, b) for a, b in zip(copies, tensors, strict=True))


@pytest.mark.parametrize("n_elements", [0, 10, 12])
def test_a_vector_of_another_length_is_refused_with_both_lengths(n_elements):
    with pytest.raises(ValueError, match=f"the checkpoint has {n_elements} values, the adapter 11"):
        unflatten(np.zeros(n_elements, dtype=np.float32), [torch.zeros(11)])
