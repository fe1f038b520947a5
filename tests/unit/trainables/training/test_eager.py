"""The eager engine against the Hugging Face Trainer, and what a step may touch."""

import numpy as np
import pytest
import torch

from tests.support.stock_trainer import trainer_losses
from trainables.cost.memory import peak_of
from trainables.data.tokens import IGNORE, pad
from trainables.models import base_model, lora
from trainables.models.chunked_loss import ChunkedLoss
from trainables.models.core import set_checkpointing
from trainables.models.families.gpt2 import TARGETS
from trainables.training.eager import EagerEngine

N_STEPS = 50
BATCH = 4


@pytest.fixture(scope="module")
def batches(splits):
    """Padded batches of real rows; each keeps some prompt, so that no label is shifted out."""
    rows = splits["train"]
    padded = [
        pad(rows[start : start + BATCH], max_length_tokens=96, pad_id=0) for start in range(0, N_STEPS * BATCH, BATCH)
    ]
    assert all((labels[:, 0] == IGNORE).all() for _, labels in padded)
    return padded


@pytest.fixture(scope="module")
def lengths(splits):
    """Tokens of each row of each batch."""
    n_tokens = [min(len(row.input_ids), 96) for row in splits["train"][: N_STEPS * BATCH]]
    return [n_tokens[start : start + BATCH] for start in range(0, len(n_tokens), BATCH)]


@pytest.mark.parametrize("loop", ["standard", "lean", "lean, rows one after the other"])
@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_both_loops_take_the_steps_of_the_hugging_face_trainer(
    precision, loop, workload, batches, lengths, small_config, tmp_path
):
    loop, _, is_flat = loop.partition(", ")
    given = [(*batch, n_tokens if is_flat else ()) for batch, n_tokens in zip(batches, lengths, strict=True)]
    config = small_config(
        precision=precision,
        loop=loop,
        alpha=32,
        targets=TARGETS,
        dropout=0.0,
        learning_rate=2e-3,
        max_length_tokens=128,
    )
    model = lora.attach(base_model.load(workload, precision, "cpu"), config, base_name="tiny")
    engine = EagerEngine(model, config, compute_dtype="float32", device="cpu")
    ours = torch.stack([engine.step(*batch) for batch in given])
    stock = lora.attach(base_model.load(workload, precision, "cpu"), config, base_name="tiny")
    theirs, norms = trainer_losses(stock, batches, learning_rate=config.learning_rate, folder=tmp_path, use_cpu=True)
    assert len(theirs) == len(norms) == N_STEPS
    assert max(norms) > 1.5, norms  # clipping had work to do
    assert (ours - theirs).abs().max() < 1e-5, (ours, theirs)
    assert sum(ours[-10:]) < sum(ours[:10])


@pytest.mark.parametrize(
    ("ours", "stock"),
    [
        ({"schedule": "cosine", "warmup_share": 0.1}, {"lr_scheduler_type": "cosine", "warmup_steps": 5}),
        ({"schedule": "linear"}, {"lr_scheduler_type": "linear"}),
        ({"gradient_checkpointing": True, "loop": "lean"}, {"gradient_checkpointing": True}),
        ({"optimizer": "adamw_8bit", "rank": 32}, {"optim": "adamw_bnb_8bit"}),
    ],
)
def test_a_recipe_takes_the_steps_of_the_hugging_face_trainer_with_the_same_one(
    ours, stock, workload, batches, small_config, tmp_path
):
    config = small_config(alpha=32, targets=TARGETS, dropout=0.0, learning_rate=2e-3, max_steps=N_STEPS, **ours)
    model = lora.attach(base_model.load(workload, "16bit", "cpu"), config, base_name="tiny")
    engine = EagerEngine(model, config, compute_dtype="float32", device="cpu")
    found = engine.run(batches)
    other = lora.attach(base_model.load(workload, "16bit", "cpu"), config, base_name="tiny")
    theirs, _ = trainer_losses(
        other, batches, learning_rate=config.learning_rate, folder=tmp_path, use_cpu=True, **stock
    )
    assert (found - theirs).abs().max() < 1e-5, (found, theirs)


@pytest.fixture(params=["16bit", "nf4"])
def tuned(request, cache, small_config):
    """A model with a fresh adapter, and its config."""
    config = small_config(precision=request.param)
    model = lora.attach(cache.base(request.param), config, base_name="tiny")
    yield model, config
    lora.detach(model)


def engine_of(tuned) -> EagerEngine:
    return EagerEngine(*tuned, compute_dtype="float32", device="cpu")


def test_a_steps_loss_is_the_mean_over_supervised_tokens_before_the_update(tuned, batches):
    input_ids, labels = batches[0]
    with torch.no_grad():
        log_probabilities = tuned[0].eval()(input_ids=input_ids).logits.double().log_softmax(dim=-1)
    losses = [
        -float(log_probabilities[row, column - 1, labels[row, column]])
        for row, column in (labels != IGNORE).nonzero().tolist()
    ]
    loss = engine_of(tuned).step(input_ids, labels)
    assert not loss.requires_grad
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(sum(losses) / len(losses), abs=1e-5)  # B is 0: dropout has no effect yet


def test_a_step_moves_the_adapter_and_nothing_else(tuned, batches):
    model, _ = tuned
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    engine = engine_of(tuned)
    engine.step(*batches[0])  # moves B alone, since B starts at 0
    engine.step(*batches[1])
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert all(p.grad is None for p in model.parameters())


def moments(engine) -> list[torch.Tensor]:
    """Of all matrices, in order; each step's number is no moment."""
    slots = [engine.optimizer.state[p] for p in engine.parameters]
    return [slot[name] for slot in slots for name in sorted(slot) if name != "step"]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_moments_begin_without_a_step_as_large_as_a_step_makes_them_and_move_nothing(
    tuned, batches, small_config, optimizer
):
    model, _ = tuned
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = small_config(optimizer=optimizer, rank=32)
    engines = [EagerEngine(model, config, compute_dtype="float32", device="cpu") for _ in range(2)]
    engines[0].begin_moments()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    engines[1].step(*batches[0])
    shapes = [[(m.shape, m.dtype) for m in moments(engine)] for engine in engines]
    assert shapes[0] == shapes[1] != []


def test_the_first_step_of_adam_moves_each_weight_by_at_most_the_learning_rate(tuned, batches):
    model, config = tuned
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_B" in name}
    engine_of(tuned).step(*batches[0])
    for name, value in before.items():
        change = (model.get_parameter(name) - value).abs()
        assert change.max() <= config.learning_rate * 1.0001
        assert change.median() > config.learning_rate * 0.9


def test_padding_changes_no_loss(tuned, batches):
    input_ids, labels = batches[0]
    fresh = {name: p.detach().clone() for name, p in tuned[0].named_parameters() if "lora_" in name}
    loss = engine_of(tuned).step(input_ids, labels)
    for name, value in fresh.items():
        tuned[0].get_parameter(name).data.copy_(value)
    wider = [torch.nn.functional.pad(part, (0, 20), value=fill) for part, fill in ((input_ids, 5), (labels, IGNORE))]
    assert float(engine_of(tuned).step(*wider)) == pytest.approx(float(loss), abs=1e-6)


@pytest.mark.parametrize("n_tokens", [1, 255, 256, 257, 700])
def test_the_lean_loss_and_its_gradient_are_those_of_full_logits(n_tokens):
    generator = torch.Generator().manual_seed(n_tokens)
    states = torch.randn(n_tokens, 16, generator=generator, dtype=torch.float64).float().requires_grad_()
    head = torch.randn(50, 16, generator=generator)
    targets = torch.randint(50, (n_tokens,), generator=generator)
    full = torch.nn.functional.cross_entropy(states.double() @ head.double().T, targets)
    (expected,) = torch.autograd.grad(3 * full, states)
    lean = ChunkedLoss.apply(states, head, targets)
    (found,) = torch.autograd.grad(3 * lean, states)
    assert lean.item() == pytest.approx(full.item(), rel=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_the_lean_loop_needs_less_memory_and_leaves_the_stock_activation(cache, small_config):
    base = cache.base("16bit")
    stock = [block.mlp.act for block in base.transformer.h]
    ids = torch.zeros(4, 128, dtype=torch.int64)
    peaks = {}
    for loop in ("standard", "lean"):
        config = small_config(loop=loop)
        model = lora.attach(base, config, base_name="tiny")
        engine = EagerEngine(model, config, compute_dtype="float32", device="cpu")
        engine.step(ids, ids)
        peaks[loop] = peak_of(lambda engine=engine: engine.step(ids, ids), "cpu").allocated_mib
        lora.detach(model)
    assert peaks["lean"] < 0.7 * peaks["standard"], peaks
    assert [block.mlp.act for block in base.transformer.h] == stock


def test_checkpointing_needs_less_memory_and_changes_no_gradient(cache, small_config, batches):
    """With dropout: the block that runs again draws the same mask."""
    base = cache.base("16bit")
    gradients, peaks = {}, {}
    for checkpointing in (False, True):
        config = small_config(loop="lean", dropout=0.3, targets=TARGETS, gradient_checkpointing=checkpointing)
        model = lora.attach(base, config, base_name="tiny")
        engine = EagerEngine(model, config, compute_dtype="float32", device="cpu")
        engine.run(batches[:3])
        gradients[checkpointing] = engine.state().weights
        peaks[checkpointing] = peak_of(lambda engine=engine: engine.step(*batches[3]), "cpu").allocated_mib
        lora.detach(model)
    np.testing.assert_array_equal(gradients[True], gradients[False])
    assert peaks[True] < peaks[False], peaks


@pytest.mark.parametrize(("loop", "is_spared"), [("lean", True), ("standard", False)])
def test_the_lean_loop_works_on_the_rows_own_tokens_where_it_knows_their_lengths(
    loop, is_spared, cache, batches, lengths, small_config
):
    config = small_config(loop=loop, targets=TARGETS, max_length_tokens=128)
    model = lora.attach(cache.base("16bit"), config, base_name="tiny")
    engine = EagerEngine(model, config, compute_dtype="float32", device="cpu")
    seen = []
    hook = model.get_base_model().transformer.h[0].register_forward_hook(lambda _, given, __: seen.append(given[0]))
    try:
        engine.step(*batches[0], lengths[0])
        engine.step(*batches[0])
    finally:
        hook.remove()
        lora.detach(model)
    n_padded = batches[0][0].numel()
    assert sum(lengths[0]) < n_padded
    assert [states.shape[:-1].numel() for states in seen] == [sum(lengths[0]) if is_spared else n_padded, n_padded]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["blocks kept", "blocks run again"])
def test_steps_with_dropout_come_to_the_same_adapter_whether_rows_are_padded_or_laid_one_after_the_other(
    checkpointing, cache, batches, lengths, small_config
):
    config = small_config(
        loop="lean", targets=TARGETS, dropout=0.3, gradient_checkpointing=checkpointing, max_length_tokens=128
    )
    found = []
    for known in ([()] * N_STEPS, lengths):
        model = lora.attach(cache.base("16bit"), config, base_name="tiny")
        try:
            engine = EagerEngine(model, config, compute_dtype="float32", device="cpu")
            losses = [float(engine.step(*batches[i], known[i])) for i in range(5)]
            found.append((losses, torch.cat([p.detach().flatten() for p in engine.parameters])))
        finally:
            set_checkpointing(model.get_base_model(), False)
            lora.detach(model)
    (losses, weights), (flat_losses, flat_weights) = found
    assert flat_losses == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(flat_weights, weights, rtol=1e-3, atol=1e-5)
