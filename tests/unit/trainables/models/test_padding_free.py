"""Rows laid one after the other against the same rows padded, in every family."""

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.support.families import CASES, UNKNOWN, every_case, tiny
from trainables.cost.memory import peak_of
from trainables.data.tokens import IGNORE, TokenRow, pad
from trainables.models import lora
from trainables.models.chunked_loss import supervised
from trainables.models.core import set_checkpointing
from trainables.models.dropout_mask import DropoutMasks
from trainables.models.lean import lean_loss, lean_modules, lean_step
from trainables.models.padding_free import FlatRows, hidden_states, padding_free, serves
from trainables.models.peft_forward import follow_protocol
from trainables.training.batches import MOST_OF_FULL
from trainables.training.eager import EagerEngine
from trainables.training.engine import standard_loss, standard_step
from trainables.values.config import Loop, TrialConfig

LENGTHS = (9, 23, 14)
"""Longer and shorter than the window of those variants that have one."""
WORDS = torch.randint(1, 97, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(0))
LABELS = WORDS.clone()
for row, n_tokens in enumerate(LENGTHS):
    LABELS[row, :4], LABELS[row, n_tokens:] = IGNORE, IGNORE
FLAT = FlatRows.on_host(LENGTHS)


def loss_and_gradients(model, flat: FlatRows | None) -> list[torch.Tensor]:
    """Of one step with dropout."""
    masks = DropoutMasks(5, "cpu")
    follow_protocol(model, masks)
    weights = [p for p in model.parameters() if p.requires_grad]
    positions, targets = supervised(LABELS)
    if flat is None:
        with masks.step(*WORDS.shape), lean_modules(model):
            loss = lean_loss(model, WORDS, positions, targets)
            return [loss, *torch.autograd.grad(loss, weights)]
    with masks.step_at(flat.rows, flat.positions), lean_modules(model), padding_free(model.get_base_model()):
        loss = lean_loss(model, flat.taken(WORDS), flat.found(positions, WORDS.shape[1]), targets, flat)
        return [loss, *torch.autograd.grad(loss, weights)]


def adapted(case):
    """In training, with dropout on every target; B is drawn, so that both matrices have gradients."""
    config = TrialConfig(precision="16bit", rank=4, alpha=8, targets=case.family.targets, dropout=0.2, loop="lean")
    model = lora.attach(tiny(case), config, base_name="tiny")
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.1, generator=generator)
    return model.train()


@every_case
@pytest.mark.parametrize("checkpointing", [False, True], ids=["blocks kept", "blocks run again"])
def test_loss_and_gradients_of_a_step_are_those_of_the_padded_batch(case, checkpointing):
    model = adapted(case)
    expected = loss_and_gradients(model, None)
    core = model.get_base_model()
    if checkpointing:
        set_checkpointing(core, True)
    found = loss_and_gradients(model, FLAT)
    assert core.config._attn_implementation == "sdpa"
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.detach().abs().max()))


@every_case
@torch.no_grad()
def test_the_states_of_a_row_depend_on_no_other_row(case):
    core = tiny(case)
    first = FLAT.rows == 0
    expected = hidden_states(core, FLAT.taken(WORDS), FLAT)
    others = FLAT.taken(WORDS).where(first, 3)
    found = hidden_states(core, others, FLAT)
    assert torch.equal(found[first], expected[first])
    assert (found[~first] - expected[~first]).abs().max() > 0.1


@every_case
@torch.no_grad()
def test_every_block_works_on_the_rows_own_tokens_alone(case):
    core = tiny(case)
    seen = set()
    for block in case.family.blocks_of(core):
        block.register_forward_hook(lambda _, inputs, output: seen.add(inputs[0].shape[:2]))
    assert len(hidden_states(core, FLAT.taken(WORDS), FLAT)) == sum(LENGTHS)
    assert seen == {(1, sum(LENGTHS))}


@every_case
@torch.no_grad()
def test_the_states_of_padded_rows_are_those_of_transformers_own_attention(case):
    core = tiny(case)
    expected = core.base_model(input_ids=WORDS, use_cache=False).last_hidden_state.flatten(0, 1)
    torch.testing.assert_close(hidden_states(core, WORDS), expected, rtol=1e-6, atol=1e-6)


@every_case
@pytest.mark.parametrize("loop", get_args(Loop))
def test_captured_steps_give_attention_no_mask_but_of_a_window(case, loop, monkeypatch):
    """transformers makes one for whatever is captured: it cannot look at positions then."""
    model, masks, stock = adapted(case), [], F.scaled_dot_product_attention
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)

    def noted(*tensors, attn_mask=None, **how):
        masks.append(attn_mask)
        return stock(*tensors, attn_mask=attn_mask, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    core, drawn = model.get_base_model(), DropoutMasks(5, "cpu")
    follow_protocol(model, drawn)
    if loop == "lean":
        with lean_step(model, drawn, tuple(WORDS.shape), None):
            lean_loss(model, WORDS, *supervised(LABELS))
    else:
        with standard_step(core, drawn, tuple(WORDS.shape)):
            standard_loss(model, WORDS, LABELS)
    window = case.family.windows != "none" and getattr(core.config, "sliding_window", None)
    assert len(masks) == len(case.family.blocks_of(core))
    assert all(mask is None for mask in masks) == (not window)


def test_attention_is_the_bases_own_again_where_reading_failed():
    core = tiny(CASES[0])
    with pytest.raises(IndexError):
        hidden_states(core, torch.full((sum(LENGTHS),), 10**6), FLAT)
    assert core.config._attn_implementation == "sdpa"


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), more=st.integers(0, 3))
def test_flat_rows_are_the_rows_one_after_the_other(lengths, more):
    rows = [
        TokenRow(input_ids=tuple(10 * n + i for i in range(n_tokens)), n_prompt_tokens=0)
        for n, n_tokens in enumerate(lengths)
    ]
    padded, labels = pad(rows, max_length_tokens=9 + more, pad_id=99, multiple=max(lengths) + more)
    flat = FlatRows.on_host(lengths)
    assert (flat.n_rows, flat.length) == (len(lengths), max(lengths))
    assert flat.taken(padded).tolist() == [token for row in rows for token in row.input_ids]
    assert flat.rows.tolist() == [n for n, n_tokens in enumerate(lengths) for _ in range(n_tokens)]
    assert flat.positions.tolist() == [i for n_tokens in lengths for i in range(n_tokens)]
    assert flat.starts.tolist() == [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    positions, targets = supervised(labels)
    following = flat.taken(padded)[flat.found(positions, padded.shape[1]) + 1]
    assert torch.equal(following, targets)


def test_a_base_that_no_family_describes_reads_padded_rows():
    assert all(serves(tiny(case)) for case in CASES)
    assert not any(serves(tiny(case)) for case in UNKNOWN)


def test_a_base_whose_attention_is_not_pytorchs_reads_padded_rows():
    core = tiny(CASES[0])
    core.set_attn_implementation("eager")
    assert not serves(core)


FULL = 128
"""Tokens of each of four full rows: at this many, what follows tokens outweighs what does not."""


@every_case
def test_a_step_of_rows_one_after_the_other_needs_no_more_memory_than_one_of_a_full_batch(case):
    """Which is a trial's peak, whatever its rows are."""
    config = TrialConfig(
        precision="16bit",
        rank=4,
        alpha=8,
        targets=case.family.targets,
        dropout=0.2,
        loop="lean",
        batch_size=4,
        max_length_tokens=FULL,
    )
    model = lora.attach(tiny(case), config, base_name="tiny")
    engine = EagerEngine(model, config, compute_dtype="float32", device="cpu")
    ids = torch.randint(1, 97, (4, FULL), generator=torch.Generator().manual_seed(0))
    n_most = int(MOST_OF_FULL * ids.numel())
    lengths = [FULL, FULL, 64, n_most - 2 * FULL - 64]
    labels = ids.clone()
    for row, n_tokens in enumerate(lengths):
        labels[row, n_tokens:] = IGNORE
    peaks = {}
    for known in ((), lengths):
        engine.step(ids, labels, known)
        peaks[bool(known)] = peak_of(lambda known=known: engine.step(ids, labels, known), "cpu").allocated_mib
    assert peaks[True] <= peaks[False]
