"""The embedded demo is what its script makes, and good enough to show what a sweep measures."""

import json
import math
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables import demo
from trainables.demo.build import build, check
from trainables.demo.build.kinds import WITH_INPUT, WITHOUT_INPUT
from trainables.demo.build.rows import alpaca_rows, framed, rows_by_kind


@pytest.fixture(scope="module", autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(build.N_THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return check.load_tokenizer()


@pytest.fixture(scope="module")
def record():
    return json.loads(demo.BUILD_RECORD_FILE.read_text(encoding="utf-8"))


def test_the_generator_gives_exactly_the_shipped_rows(tmp_path):
    path = tmp_path / "rows.json"
    build.write_rows(path)
    assert path.read_bytes() == demo.ROWS_FILE.read_bytes()


def test_the_script_gives_exactly_the_shipped_tokenizer(tmp_path):
    build.write_tokenizer(alpaca_rows(), tmp_path)
    made, shipped = (json.loads((folder / "tokenizer.json").read_text("utf-8")) for folder in (tmp_path, demo.FOLDER))
    assert made["model"]["vocab"] == shipped["model"]["vocab"]
    assert made["model"]["merges"] == shipped["model"]["merges"]


@pytest.mark.slow
def test_the_first_pretraining_steps_give_the_recorded_losses(tokenizer, record):
    recorded = record["first_losses_nats"]
    losses = list(islice(build.pretraining_losses(build.untrained_model(tokenizer), tokenizer), len(recorded)))
    assert len(losses) == build.N_RECORDED_STEPS
    # One thread, AVX2 and no AVX at all moved these by 1.4e-6 at most on the machine that built them.
    assert losses == pytest.approx(recorded, abs=1e-3)


def test_the_shipped_model_has_the_recorded_held_out_loss_under_half_of_uniform(tokenizer, record):
    loss = check.response_loss(check.load_base("16bit"), tokenizer, check.held_out_rows(check.shipped_rows()))
    assert loss == pytest.approx(record["held_out_loss_nats"], abs=1e-3)
    assert loss < 0.5 * math.log(len(tokenizer))


def test_the_shipped_weights_are_small_and_survive_a_round_to_float16():
    weights = demo.FOLDER / "model.safetensors"
    assert weights.stat().st_size <= 4 * 1024**2
    model = check.load_base("16bit")
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert torch.equal(parameter, parameter.half().float()), name


def test_half_of_at_least_two_thousand_rows_have_an_input():
    rows = check.shipped_rows()
    assert len(rows) >= 2_000
    share = sum(bool(row["input"]) for row in rows) / len(rows)
    assert share == pytest.approx(0.5, abs=0.05)


def test_rows_are_alpacas_in_form_and_none_repeats():
    rows = check.shipped_rows()
    assert all(set(row) == {"instruction", "input", "output"} for row in rows)
    assert all(row["instruction"].strip() and row["output"].strip() for row in rows)
    assert not any(mark in row["instruction"] for row in rows for mark in "[]|")
    assert len({(row["instruction"], row["input"]) for row in rows}) == len(rows)


def test_rows_have_at_least_twelve_kinds_in_equal_numbers():
    kinds = rows_by_kind()
    assert len(kinds) == len(WITH_INPUT) + len(WITHOUT_INPUT) >= 12
    assert len({len(rows) for rows in kinds.values()}) == 1


def test_instructions_are_distinct_enough_to_split_by():
    rows = check.shipped_rows()
    assert len({row["instruction"] for row in rows}) >= 1_500
    held_out, train = check.held_out_rows(rows), check.training_rows(rows)
    assert (len(held_out), len(train)) == (check.N_HELD_OUT_ROWS, check.N_TRAINING_ROWS)
    assert not {row["instruction"] for row in held_out} & {row["instruction"] for row in train}


def test_every_row_fits_the_demos_length(tokenizer):
    longest = max(len(tokenizer(framed(row))["input_ids"]) for row in check.shipped_rows())
    assert longest <= demo.MAX_LENGTH_TOKENS


@settings(deadline=None, max_examples=200)
@given(text=st.text())
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_end_token_is_one_token_and_every_special_one(tokenizer):
    assert tokenizer(demo.END)["input_ids"] == [tokenizer.eos_token_id]
    assert tokenizer.eos_token == tokenizer.bos_token == tokenizer.unk_token == tokenizer.pad_token == demo.END
