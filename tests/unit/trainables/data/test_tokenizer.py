"""Tokenizers as models are published with them: start and end tokens, vocabularies, texts in pieces."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.support import tokenizers
from trainables.data.alpaca import Row
from trainables.data.completion import CompletionRow
from trainables.data.rows import CheckedRows
from trainables.data.tokenized import tokenize
from trainables.data.tokenizer import Encoder, open_tokenizer
from trainables.data.tokens import load
from trainables.values.errors import ConfigError, DataError

ROWS = tuple(Row(instruction=f"one {i}", input="", output=f"two {i}") for i in range(300))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> Path:
    return tokenizers.byte_level(tmp_path_factory.mktemp("byte-level"))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory) -> Path:
    return tokenizers.sentencepiece_like(tmp_path_factory.mktemp("sentencepiece"))


def config(folder: Path, **values: object) -> None:
    (folder / "config.json").write_text(json.dumps(values))


def data_of(rows: tuple, folder: Path, cache: Path):
    return load(tokenize(CheckedRows(rows=rows, dropped={}), folder, cache).folder)


def test_a_prompt_gets_the_start_token_once_and_the_response_no_space(sentencepiece, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(sentencepiece)
    for row in data_of(ROWS, sentencepiece, tmp_path)["train"]:
        assert row.input_ids[0] == tokenizer.bos_token_id
        assert row.input_ids[-1] == tokenizer.eos_token_id
        assert row.input_ids.count(tokenizer.bos_token_id) == row.input_ids.count(tokenizer.eos_token_id) == 1
        assert "### Response:\ntwo" in tokenizer.decode(row.input_ids)
        assert tokenizer(tokenizer.decode(row.input_ids[1:-1]))["input_ids"] == list(row.input_ids[:-1])


def test_a_tokenizer_that_adds_no_start_token_gets_none(byte_level, tmp_path):
    row = data_of(ROWS, byte_level, tmp_path)["train"][0]
    tokenizer = AutoTokenizer.from_pretrained(byte_level)
    assert tokenizer.decode(row.input_ids).startswith("### Instruction:")


def test_a_completion_follows_its_prompt_with_nothing_between(byte_level, tmp_path):
    rows = tuple(CompletionRow(prompt=f"one {i} ->", completion=f" two {i}") for i in range(300))
    tokenizer = AutoTokenizer.from_pretrained(byte_level)
    texts = set()
    for row in data_of(rows, byte_level, tmp_path)["train"]:
        prompt, response = row.input_ids[: row.n_prompt_tokens], row.input_ids[row.n_prompt_tokens :]
        texts.add((tokenizer.decode(prompt), tokenizer.decode(response)))
    assert texts <= {(row.prompt, row.completion + "<|endoftext|>") for row in rows}


@settings(max_examples=60)
@given(st.lists(st.text(alphabet="ab \n\té日", min_size=1, max_size=8), min_size=1, max_size=5))
def test_pieces_decode_to_their_texts_and_begin_as_when_they_stand_alone(byte_level, pieces):
    tokenizer = AutoTokenizer.from_pretrained(byte_level)
    parts = Encoder(tokenizer, reads_special=False).pieces([tuple(pieces)])[0]
    assert [tokenizer.decode(ids) for ids in parts] == pieces
    assert parts[0] == tokenizer(pieces[0])["input_ids"]


def test_a_vocabulary_larger_than_the_embedding_is_refused_with_both_numbers(tmp_path):
    folder = tokenizers.byte_level(tmp_path)
    n_words = len(AutoTokenizer.from_pretrained(folder))
    config(folder, vocab_size=100)
    with pytest.raises(ConfigError, match=rf"has {n_words} tokens, but the model's embedding has 100 rows"):
        open_tokenizer(folder)


def test_added_tokens_without_an_embedding_are_refused_only_where_a_row_has_one(tmp_path):
    """Gemma 3 is published with one token more than its text model has embeddings."""
    folder = tokenizers.byte_level(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    n_embeddings = len(tokenizer)
    tokenizer.add_tokens(["zwei"])
    tokenizer.save_pretrained(folder)
    config(folder, vocab_size=n_embeddings)
    data_of(ROWS, folder, tmp_path / "cache")
    rows = (*ROWS, *(Row(instruction=f"x {i}", input="", output="zwei") for i in range(300)))
    with pytest.raises(ConfigError, match=rf"{n_embeddings + 1} tokens, .* {n_embeddings} rows"):
        data_of(rows, folder, tmp_path / "cache")


def test_rows_that_another_base_left_in_the_cache_are_held_against_the_embedding_too(byte_level, tmp_path):
    folder = shutil.copytree(byte_level, tmp_path / "base")
    config(folder, vocab_size=1000)
    data_of(ROWS, folder, tmp_path / "cache")
    config(folder, vocab_size=50)
    with pytest.raises(ConfigError, match="embedding has 50 rows"):
        data_of(ROWS, folder, tmp_path / "cache")


def test_a_tokenizer_model_alone_is_refused_with_what_is_needed(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    config(tmp_path, model_type="llama", vocab_size=32000)
    with pytest.raises(ConfigError, match=r"cannot be read.*tokenizer.model alone.*sentencepiece.*tokenizer.json"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["[]", '{"eos', "[" * 100_000])
def test_damaged_generation_settings_are_refused_and_not_a_traceback(content, byte_level, tmp_path):
    folder = shutil.copytree(byte_level, tmp_path / "base")
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"generation_config.json' is not a JSON object"):
        data_of(ROWS, folder, tmp_path / "cache")


def test_a_damaged_tokenizer_is_refused_and_not_a_traceback(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    config(tmp_path, model_type="llama", vocab_size=32000)
    with pytest.raises(ConfigError, match=r"BASE_MODEL: the tokenizer in .* cannot be read"):
        open_tokenizer(tmp_path)


def test_held_out_rows_are_cut_or_dropped_and_both_are_counted(byte_level, tmp_path):
    rows = [Row(instruction=f"one {i}", input="", output="two") for i in range(200)]
    rows += [Row(instruction=f"long {i}", input="", output="x " * 300) for i in range(200)]
    rows += [Row(instruction=f"{i} wide " + "y " * 300, input="", output="x " * 300) for i in range(200)]
    found = tokenize(CheckedRows(rows=tuple(rows), dropped={}), byte_level, tmp_path)
    counts, data = found.counts, load(found.folder)
    held_out = data["validation"] + data["test"]
    n_cut = sum(len(row.input_ids) == 512 for row in held_out)
    n_dropped = counts["dropped: under 16 response tokens left of 512 (validation, test)"]
    assert counts["longer than 512 tokens (validation, test)"] == n_cut + n_dropped
    assert min(n_cut, n_dropped) > 10
    assert len(held_out) + n_dropped == 55 + 110  # 600 rows' shares of 128 and 256 in 1,384
    assert (counts["validation"], counts["test"]) == (len(data["validation"]), len(data["test"]))
    assert max(len(row.input_ids) for row in data["train"]) > 512, "train rows are cut at the trial's length"
    assert tokenize(CheckedRows(rows=tuple(rows), dropped={}), byte_level, tmp_path) == found, "counted from the cache"


def test_data_of_which_no_row_keeps_a_response_is_refused(byte_level, tmp_path):
    rows = tuple(Row(instruction=f"{i} " + "y " * 600, input="", output="x") for i in range(300))
    with pytest.raises(DataError, match="no validation row keeps 16 tokens of its response when cut at 512"):
        data_of(rows, byte_level, tmp_path)
