"""What captured steps rest on, as far as a CPU shows it: keys, packed batches, a padded rank that takes no part."""

import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from trainables.capture.capture import RANKS
from trainables.data.tokens import IGNORE, TokenRow, pad
from trainables.models import lora
from trainables.models.families.gpt2 import TARGETS
from trainables.models.lean import adapted_layers
from trainables.models.lora import AdapterWeights
from trainables.training.batches import FLAT_MULTIPLE, Batch, StepShape, packed, unpacked
from trainables.training.eager import EagerEngine
from trainables.training.graph_cache import GraphCache, _compiles_alike
from trainables.training.graph_key import graph_key
from trainables.trial import Trial
from trainables.values.config import LOSS_CHUNK_TOKENS, TrialConfig
from trainables.values.errors import ConfigError, NoRoom


@given(st.integers(1, 300))
def test_a_graphs_rank_is_the_smallest_offered_that_is_enough_or_else_the_trials_own(rank):
    enough = [offered for offered in RANKS if offered >= rank]
    assert graph_key(TrialConfig(precision="nf4", rank=rank, alpha=1)).rank == min(enough, default=rank)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"rank": 16}, True),
        ({"rank": 17}, False),
        ({"alpha": 99.0}, True),
        ({"rank_stabilized": True}, True),
        ({"learning_rate": 1.0}, True),
        ({"seed": 5}, True),
        ({"max_steps": 7}, True),
        ({"batch_size": 3, "max_length_tokens": 32}, True),
        ({"precision": "nf4"}, False),
        ({"targets": TARGETS}, False),
        ({"dropout": 0.5}, False),
        ({"loop": "lean"}, False),
    ],
    ids=str,
)
def test_configs_share_graphs_where_they_differ_only_in_what_is_set_between_replays(small_config, change, same):
    config = small_config(rank=4)
    assert (graph_key(config) == graph_key(replace(config, **change))) == same


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"targets": TARGETS}, True),
        ({"dropout": 0.5}, True),
        ({"rank": 16}, True),
        ({"rank": 17}, False),
        ({"dropout": 0.0}, False),
        ({"precision": "nf4"}, False),
        ({"loop": "lean"}, False),
        ({"gradient_checkpointing": True}, False),
    ],
    ids=str,
)
def test_kernels_are_the_same_where_configs_differ_in_which_modules_have_an_adapter_and_in_rates(
    small_config, change, same
):
    config = small_config(rank=4, dropout=0.1)
    assert (graph_key(config).kernels == graph_key(replace(config, **change)).kernels) == same


@pytest.mark.parametrize(
    ("change", "alike"),
    [({}, True), ({"n_layer": 1}, False), ({"n_inner": 100}, False), ({"n_embd": 40}, False)],
    ids=str,
)
def test_kernels_are_told_of_a_base_of_several_blocks_whose_inputs_are_as_triton_likes_them(change, alike):
    shape = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 64, "n_positions": 32}
    assert _compiles_alike(GPT2LMHeadModel(GPT2Config(**shape | change))) == alike


ROWS = st.lists(
    st.integers(2, 90).flatmap(
        lambda n: st.builds(
            lambda n_prompt: TokenRow(input_ids=tuple(range(1, n + 1)), n_prompt_tokens=n_prompt), st.integers(0, n)
        )
    ),
    min_size=1,
    max_size=5,
)


@given(ROWS)
def test_a_packed_batch_can_be_read_back_and_its_vector_is_as_long_as_its_shape_says(rows):
    input_ids, labels = pad(rows, max_length_tokens=64, pad_id=0, multiple=32)
    for loop in ("standard", "lean"):
        shape, vector = packed(Batch(input_ids, labels), loop)
        assert (shape.n_rows, shape.length) == tuple(input_ids.shape)
        assert len(vector) == shape.n_tokens + (2 * shape.n_targets if loop == "lean" else shape.n_tokens)
        ids, rest = vector[: shape.n_tokens].view(shape.n_rows, shape.length), vector[shape.n_tokens :]
        assert torch.equal(ids, input_ids)
        if loop == "standard":
            assert shape.n_targets == 0
            assert torch.equal(rest.view_as(labels), labels)
            continue
        assert shape.n_targets % LOSS_CHUNK_TOKENS == 0
        positions, targets = rest.view(2, shape.n_targets)
        wanted = torch.full((shape.n_tokens,), IGNORE)
        wanted[positions[targets != IGNORE]] = targets[targets != IGNORE]
        assert torch.equal(wanted.view_as(labels)[:, :-1], labels[:, 1:])
        assert (wanted.view_as(labels)[:, -1] == IGNORE).all()


@given(ROWS)
def test_a_packed_batch_of_flat_rows_has_the_same_tokens_where_its_lengths_say(rows):
    input_ids, labels = pad(rows, max_length_tokens=64, pad_id=0, multiple=32)
    assume((labels[:, 1:] != IGNORE).any())
    lengths = tuple(min(len(row.input_ids), 64) for row in rows)
    shape, vector = packed(Batch(input_ids, labels, lengths), "lean", longest=70)
    assert len(vector) == sum(shape.sizes)
    ids, flat, (positions, targets) = unpacked(shape, vector)
    if flat is None:
        assert -(-sum(lengths) // FLAT_MULTIPLE) * FLAT_MULTIPLE >= input_ids.numel()
        assert packed(Batch(input_ids, labels), "lean")[0] == shape
        return
    assert (shape.n_rows, shape.length, shape.n_tokens) == (len(rows), 70, len(ids))
    assert sum(lengths) <= len(ids) < min(sum(lengths) + FLAT_MULTIPLE, input_ids.numel())
    assert len(ids) % FLAT_MULTIPLE == 0
    assert flat.starts[-1] == len(ids)
    assert flat.starts.diff().max() <= input_ids.shape[1]  # attention reads no further
    read = torch.full((len(rows), 70), -1)
    read.view(-1)[flat.places] = ids
    for row, n_tokens in enumerate(lengths):
        assert torch.equal(read[row, :n_tokens], input_ids[row, :n_tokens])
    wanted = torch.full((len(rows) * 70,), IGNORE)
    kept = targets != IGNORE
    wanted[flat.places[positions[kept]]] = targets[kept]
    width = input_ids.shape[1]
    assert torch.equal(wanted.view(len(rows), 70)[:, : width - 1], labels[:, 1:])


@pytest.mark.parametrize(("n_supervised", "n_targets"), [(1, 256), (256, 256), (257, 512)])
def test_batches_of_one_length_need_few_shapes(n_supervised, n_targets):
    ids = torch.zeros(1, 300, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORE)
    labels[0, 1 : 1 + n_supervised] = 7
    assert packed(Batch(ids, labels), "lean")[0] == StepShape(n_rows=1, length=300, n_targets=n_targets)
    assert packed(Batch(ids, labels), "standard")[0] == StepShape(n_rows=1, length=300)


def test_on_a_cpu_a_graph_is_refused_with_the_engine_that_works(cache, small_config):
    with pytest.raises(ConfigError, match="engine is graph, which needs a CUDA GPU; on a CPU it is eager"):
        Trial(small_config(engine="graph"), cache)


# --- the padded rank: an eager AdamW on weights padded as StepGraphs pad them


@pytest.fixture(params=["16bit", "nf4"])
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def batches(splits):
    rows = splits["train"]
    return [pad(rows[i : i + 4], max_length_tokens=96, pad_id=0, multiple=32) for i in range(0, 80, 4)]


def trained(cache, config, batches, *, rank=None, stray=0.0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses and final weights of a trial; with a `rank` its weights lie in the corner of ones of that rank.

    Args:
        stray: what the padded rows of A are filled with.
    """
    base = cache.base(config.precision)
    model = lora.attach(base, config, base_name="tiny")
    narrow = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    if rank:
        lora.detach(model)
        model = lora.attach(base, replace(config, rank=rank), base_name="tiny")
        for name, weight in narrow.items():
            padded = model.get_parameter(name).data.fill_(stray if "lora_A" in name else 0.0)
            padded[: weight.shape[0], : weight.shape[1]] = weight
        for layer in adapted_layers(model):
            layer.scaling = dict.fromkeys(layer.scaling, torch.tensor(config.scaling))
    try:
        losses = EagerEngine(model, config, compute_dtype="float32", device="cpu").run(batches)
        return losses, {name: model.get_parameter(name).detach().clone() for name in narrow}
    finally:
        lora.detach(model)


@pytest.mark.parametrize(("loop", "dropout"), [("standard", 0.0), ("lean", 0.0), ("lean", 0.3)])
def test_the_padding_of_a_rank_takes_no_part_in_the_update(cache, small_config, batches, precision, loop, dropout):
    config = small_config(precision=precision, rank=5, alpha=10, targets=TARGETS, loop=loop, dropout=dropout)
    losses, weights = trained(cache, config, batches)
    padded_losses, padded_weights = trained(cache, config, batches, rank=16)
    torch.testing.assert_close(padded_losses, losses, rtol=2e-6, atol=0)
    for name, weight in weights.items():
        padded = padded_weights[name].clone()
        corner = padded[: weight.shape[0], : weight.shape[1]]
        torch.testing.assert_close(corner, weight, rtol=1e-3, atol=2e-5)
        corner.zero_()
        assert not padded.any(), name
    assert losses.std() > 0


def test_padding_that_is_not_zero_would_take_part(cache, small_config, batches):
    """B's padded column gets a gradient once A's padded row is not zero: so StepGraphs clear both at each load."""
    config = small_config(rank=5, targets=TARGETS, dropout=0.0)
    losses, _ = trained(cache, config, batches)
    stray, weights = trained(cache, config, batches, rank=16, stray=0.1)
    assert (stray - losses).abs().max() > 1e-3
    assert any(weight[:, 5:].any() for name, weight in weights.items() if "lora_B" in name)


def test_a_capture_for_which_there_is_no_memory_gives_up_what_readers_hold_and_no_steps():
    """What is done eagerly instead needs the room."""
    cache, held = GraphCache(), [torch.zeros(1) for _ in range(3)]
    cache._stream = object()  # a GPU's
    cache._step_graphs["steps"] = object()
    cache._readers["any"], cache._full_weights["any"], cache._reader_buffers = held
    gone = list(map(weakref.ref, held))
    del held
    with pytest.raises(NoRoom, match="out of memory"), cache._capturing():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    assert [one() for one in gone] == [None, None, None]
    assert list(cache._step_graphs) == ["steps"]
    assert cache.fault is None


def test_a_reader_that_there_was_no_memory_for_is_not_tried_again_until_all_is_given_up():
    """Each try would cost the readers that there are."""
    cache, other, weights, tried = (
        GraphCache(),
        object(),
        AdapterWeights(matrices={}, targets=(), rank=4, scaling=1.0),
        [],
    )

    def no_room(*_):
        tried.append(True)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    cache._stream, cache._new_reader = object(), no_room  # a GPU's, which has no memory for a reader
    cache._step_graphs["steps"] = object()
    for n_tries in (1, 1):
        with pytest.raises(NoRoom, match="memory"):
            cache.reader(None, ("nf4", ()), weights, None)
        assert len(tried) == n_tries
        cache._readers["other"] = other
    assert cache._readers == {"other": other}
    cache.clear()
    cache._step_graphs["steps"] = object()
    with pytest.raises(NoRoom, match="memory"):
        cache.reader(None, ("nf4", ()), weights, None)
    assert len(tried) == 2
