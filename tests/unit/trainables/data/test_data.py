"""Rows: checked, dealt to splits, tokenized once, padded."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.support.bad_inputs import BAD_ROWS, GOOD_ROW
from trainables import demo
from trainables.data.alpaca import Row
from trainables.data.completion import CompletionRow
from trainables.data.rows import CheckedRows, check_rows, read_rows
from trainables.data.splits import LEAST_ROWS, SPLIT_ROWS, normal_form, split_rows
from trainables.data.task_kind import TASK_KINDS, task_kind
from trainables.data.tokenized import _digest, tokenize
from trainables.data.tokens import IGNORE, TokenRow, cut_counts, fitted, load, pad
from trainables.models import base_model
from trainables.values.errors import ConfigError, DataError

N_NEEDED = sum(SPLIT_ROWS.values())
N_LEAST = sum(LEAST_ROWS.values())


def token_row(prompt: list[int], turns: list[tuple[list[int], list[int]]]) -> TokenRow:
    """A conversation: a prompt, then a response and a further prompt by turns, without the last of these."""
    ids, later = list(prompt), []
    for response, between in turns:
        ids += response
        later.append((len(ids), len(ids) + len(between)))
        ids += between
    return TokenRow(input_ids=tuple(ids[: later[-1][0]]), n_prompt_tokens=len(prompt), later_prompts=tuple(later[:-1]))


def loss_mask(row: TokenRow) -> list[bool]:
    return [any(start <= i < stop for start, stop in row.responses) for i in range(len(row.input_ids))]


IDS = st.lists(st.integers(0, 9), min_size=1, max_size=25)
TOKEN_ROWS = st.builds(
    token_row, st.lists(st.integers(0, 9), max_size=12), st.lists(st.tuples(IDS, IDS), min_size=1, max_size=3)
)
SHUFFLES = st.integers(0, 99).map(Random)
TEXTS = st.text(min_size=1).filter(str.strip)


def rows_with(n_rows: int, *, n_instructions: int) -> list[Row]:
    return [Row(instruction=f"do {i % n_instructions}", input="", output=str(i)) for i in range(n_rows)]


def written(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@given(st.integers(1, 60), st.lists(st.sampled_from(sorted(BAD_ROWS)), max_size=4))
def test_every_row_read_is_either_kept_or_counted_by_its_reason(n_good, reasons):
    records = [GOOD_ROW] * n_good + [BAD_ROWS[reason] for reason in reasons]
    if len(reasons) > 0.05 * len(records):
        with pytest.raises(DataError, match=f"{len(reasons)} of {len(records)} rows"):
            check_rows(records, "x")
        return
    checked = check_rows(records, "x")
    assert checked.rows == (Row(**GOOD_ROW),) * n_good
    assert checked.dropped == Counter(reasons)
    assert checked.n_read == len(records)


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_a_bad_row_is_dropped_for_the_right_reason(reason):
    assert check_rows([GOOD_ROW] * 19 + [BAD_ROWS[reason]], "x").dropped == {reason: 1}


def test_more_than_5_percent_bad_rows_stop_with_their_reasons():
    records = [GOOD_ROW] * 37 + [BAD_ROWS["output null"]] * 2 + [BAD_ROWS["output empty"]]
    with pytest.raises(DataError, match=r"3 of 40 rows of my.json are bad .*: 2 with output null, 1 with output empty"):
        check_rows(records, "my.json")


def test_an_absent_or_null_input_is_an_empty_one():
    absent = {"instruction": "Add.", "output": "2"}
    assert check_rows([absent, absent | {"input": None}], "x").rows[0] == Row(instruction="Add.", input="", output="2")


def test_a_prompt_has_an_input_block_only_where_there_is_input():
    with_input = "### Instruction:\nAdd.\n\n### Input:\n1 + 1\n\n### Response:\n"
    assert Row(**GOOD_ROW).prompt == with_input
    assert Row(instruction="Add.", input="", output="2").prompt == with_input.replace("### Input:\n1 + 1\n\n", "")


@settings(max_examples=25)
@given(st.integers(200, N_NEEDED + 600), st.integers(3, 2000), SHUFFLES)
def test_rows_of_equal_instruction_never_straddle_splits(n_rows, n_instructions, random):
    rows = rows_with(n_rows, n_instructions=n_instructions)
    random.shuffle(rows)
    try:
        splits = split_rows(rows)
    except DataError:  # large groups can leave a split unfilled, never with enough rows and all instructions distinct
        assert n_instructions < n_rows or n_rows < N_LEAST
        return
    for name, part in splits.items():
        assert LEAST_ROWS[name] <= len(part) <= SPLIT_ROWS[name]
    if n_rows >= N_NEEDED and n_instructions >= n_rows:
        assert {name: len(part) for name, part in splits.items()} == SPLIT_ROWS
    owners = [{row.instruction for row in part} for part in splits.values()]
    assert sum(map(len, owners)) == len(set.union(*owners))
    dealt = [row for part in splits.values() for row in part]
    assert len(set(dealt)) == len(dealt)
    assert set(dealt) <= set(rows)


@pytest.mark.parametrize(
    ("n_rows", "sizes"),
    [(296, (32, 64, 200)), (692, (64, 128, 500)), (1000, (92, 184, 724)), (1383, (127, 255, 1000))],
)
def test_smaller_data_gets_smaller_splits_in_the_same_proportion(n_rows, sizes):
    splits = split_rows(rows_with(n_rows, n_instructions=n_rows))
    assert tuple(len(part) for part in splits.values()) == sizes


def test_instructions_that_differ_in_case_space_and_composition_alone_share_a_split():
    written = ["Caf\u00e9 am  Platz", "CAFE\u0301 AM\nPLATZ", " caf\u00e9 am platz\t"]
    assert {normal_form(text) for text in written} == {"caf\u00e9 am platz"}
    rows = rows_with(1500, n_instructions=1500) + [Row(instruction=text, input="", output="x") for text in written]
    owners = {name for name, part in split_rows(rows).items() for row in part if row.instruction in written}
    assert len(owners) <= 1


def test_only_as_many_rows_are_asked_for_as_the_splits_take():
    rows, asked = rows_with(5000, n_instructions=5000), []
    splits = split_rows(rows, usable=lambda row: asked.append(row) or row.output[-1] != "7")
    assert {name: len(part) for name, part in splits.items()} == SPLIT_ROWS
    assert not [row for part in splits.values() for row in part if row.output[-1] == "7"]
    assert len(asked) < 1.3 * N_NEEDED


@settings(max_examples=5)
@given(SHUFFLES)
def test_splits_do_not_depend_on_the_order_of_distinct_instructions(random):
    rows = rows_with(1500, n_instructions=1500)
    expected = split_rows(rows)
    random.shuffle(rows)
    assert split_rows(rows) == expected


def test_a_new_row_moves_at_most_one_row_out_of_each_split():
    rows = rows_with(1500, n_instructions=1500)
    before = split_rows(rows)
    after = split_rows([*rows, Row(instruction="one more", input="", output="x")])
    for name in SPLIT_ROWS:
        assert len(set(before[name]) - set(after[name])) <= 1


def test_too_few_rows_are_refused_with_how_many_are_needed():
    message = (
        r"at least 296 .* \(32 validation, 64 test, 200 train\), 200 usable rows fill only 32 .*, 64 test, 104 train"
    )
    with pytest.raises(DataError, match=message):
        split_rows(rows_with(200, n_instructions=200))
    with pytest.raises(DataError, match="at least 296"):  # enough rows, too few instructions
        split_rows(rows_with(5000, n_instructions=2))


BAD_FILES = {
    "empty.json": (b"", "is empty"),
    "truncated.json": (json.dumps([GOOD_ROW] * 9)[:-20], "not whole JSON"),
    "latin.json": ('[{"instruction": "caf\xe9", "output": "x"}]'.encode("latin-1"), "not UTF-8 .byte 21."),
    "object.json": ('{"instruction": "a", "output": "b"}', "must hold a list of rows, got dict"),
    "object.txt": (json.dumps({"data": [GOOD_ROW]}, indent=1), "must hold a list of rows, got dict"),
    "prose.txt": ("Once upon a time, there", "in no form that is known here"),
    "cut.JSONL": (f"{json.dumps(GOOD_ROW)}\n{json.dumps(GOOD_ROW)[:-3]}", "line 2.*truncated"),
    "none.json": ("[]", "holds no rows"),
    "blank.jsonl": ("\n\n", "holds no rows"),
    "fieldless.json": (json.dumps([{"text": "x"}] * 9), "has the columns text, which are no known format"),
    "scalars.json": ("[1, null, true]", "3 of 3 rows .* no fields"),
    "line.jsonl": (f"{json.dumps(GOOD_ROW)}\n\n{json.dumps(GOOD_ROW)[:-3]}\n", "line 3"),
    "deep.json": ("[" * 100_000, "not"),
    "digits.json": ("[" + "9" * 10_000 + "]", "from line 1"),
    "truncated.parquet": (b"PAR1 and no more", "not a readable Parquet file"),
    "text.parquet": ("[]", "not a readable Parquet file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_damaged_file_is_refused_with_what_is_wrong(name, tmp_path):
    content, message = BAD_FILES[name]
    path = written(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as caught:
        read_rows(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["gone.json", "gone.JSONL", "gone.parquet", "gone.txt", "gone.csv"])
def test_an_absent_file_is_refused_without_asking_a_hub(name, tmp_path):
    with pytest.raises(DataError, match="no file"):
        read_rows(str(tmp_path / name))


def test_a_folder_is_refused_with_the_files_in_it_that_could_be_meant(tmp_path):
    (tmp_path / "deeper.json").mkdir()
    for name in ("notes.md", "config.yaml"):
        written(tmp_path, name, "x")
    with pytest.raises(DataError, match=r"is a folder without \.json or .*give a file of rows as a JSON list"):
        read_rows(str(tmp_path))
    for name in ("b.JSONL", "a.json", "c.parquet"):
        written(tmp_path, name, "x")
    named = ", ".join(str(tmp_path / name) for name in ("a.json", "b.JSONL", "c.parquet"))
    with pytest.raises(DataError, match=re.escape(f"is a folder; give one file, as there are {named}")) as caught:
        read_rows(str(tmp_path))
    assert "no file" not in str(caught.value)
    for n in range(4):
        written(tmp_path, f"d{n}.json", "x")
    with pytest.raises(DataError, match=r"d0\.json, .*d1\.json and 2 more$"):
        read_rows(str(tmp_path))


NAMES = ["rows.json", "rows.jsonl", "rows.JSON", "rows.JSONL", "rows.ndjson", "rows.txt", "rows.data", "rows"]
FORMS = {
    "a JSON list": json.dumps([GOOD_ROW] * 9).encode(),
    "a JSON list over lines": json.dumps([GOOD_ROW] * 9, indent=2).encode(),
    "JSON Lines": "\n".join([json.dumps(GOOD_ROW)] * 9).encode(),
    "JSON Lines with empty ones": b"\xef\xbb\xbf\n" + "\r\n\n".join([json.dumps(GOOD_ROW)] * 9).encode() + b"\n",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_rows_are_read_by_what_a_file_holds_and_not_by_its_name(form, name, tmp_path):
    assert read_rows(str(written(tmp_path, name, FORMS[form]))).rows == (Row(**GOOD_ROW),) * 9


@pytest.mark.parametrize("name", [*NAMES, "rows.PARQUET"])
def test_parquet_is_read_under_any_name(name, tmp_path):
    pq.write_table(pa.Table.from_pylist([GOOD_ROW] * 9), tmp_path / name)
    assert read_rows(str(tmp_path / name)).rows == (Row(**GOOD_ROW),) * 9


def test_a_cut_parquet_file_is_refused_and_a_whole_one_is_read(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD_ROW] * 500), path)
    assert read_rows(str(path)).rows == (Row(**GOOD_ROW),) * 500
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"rows\.parquet is not a readable Parquet file .*truncated"):
        read_rows(str(path))


@settings(max_examples=40)
@given(st.lists(st.builds(Row, instruction=TEXTS, input=st.text(), output=TEXTS), min_size=1, max_size=5))
def test_any_text_is_read_back_from_json_and_json_lines(rows):
    records = [{"instruction": row.instruction, "input": row.input, "output": row.output} for row in rows]
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    with TemporaryDirectory() as folder:
        for name, text in (("a.json", json.dumps(records)), ("b.jsonl", lines), ("c.jsonl", "\ufeff" + lines)):
            assert read_rows(str(written(Path(folder), name, text))).rows == tuple(rows)


def test_a_line_separator_inside_a_text_ends_no_json_line(tmp_path):
    odd = GOOD_ROW | {"output": "one\u2028two\x85three"}
    path = written(tmp_path, "rows.jsonl", json.dumps(odd, ensure_ascii=False) + "\r\n")
    assert read_rows(str(path)).rows == (Row(**odd),)


@given(TOKEN_ROWS, st.integers(1, 30))
def test_a_long_row_keeps_its_beginning_and_loses_the_end_of_its_last_response(row, n_tokens):
    kept = row.first(n_tokens)
    assert kept.input_ids == row.input_ids[: len(kept.input_ids)]
    mask, short = loss_mask(row), loss_mask(kept)
    assert len(row.response_tokens) == sum(mask)
    assert short == mask[: len(short)]
    assert not any(mask[len(short) : n_tokens]), "what is left out beyond the limit carries no loss"
    assert len(short) <= n_tokens
    assert short[-1] or row.n_prompt_tokens >= n_tokens, "a row ends with a token that carries loss"
    assert all(stop < len(short) for _, stop in kept.later_prompts)


def test_16_response_tokens_are_just_enough_and_a_short_row_is_never_dropped():
    rows = [TokenRow(input_ids=(7,) * (n_prompt + 40), n_prompt_tokens=n_prompt) for n_prompt in (43, 44, 45)]
    short = TokenRow(input_ids=(7, 8), n_prompt_tokens=1)
    assert fitted([*rows, short], 60) == [rows[0].first(60), rows[1].first(60), short]
    assert len(rows[1].first(60).response_tokens) == 16


@given(st.lists(TOKEN_ROWS, min_size=1, max_size=8), st.integers(1, 60))
def test_a_row_is_dropped_where_a_cut_leaves_fewer_than_16_response_tokens(rows, n_tokens):
    expected = [
        row.first(n_tokens)
        for row in rows
        if len(row.input_ids) <= n_tokens or len(row.first(n_tokens).response_tokens) >= 16
    ]
    if not expected:
        with pytest.raises(DataError, match=rf"keeps 16 tokens .* cut at {n_tokens}"):
            fitted(rows, n_tokens)
        return
    assert fitted(rows, n_tokens) == expected
    n_longer = sum(len(row.input_ids) > n_tokens for row in rows)
    assert list(cut_counts(rows, n_tokens).values()) == [n_longer, len(rows) - len(expected)]


@given(st.lists(TOKEN_ROWS, min_size=1, max_size=5), st.integers(1, 60), st.integers(0, 9))
def test_padding_agrees_with_its_definition(rows, max_length_tokens, pad_id):
    input_ids, labels = pad(rows, max_length_tokens=max_length_tokens, pad_id=pad_id)
    kept = [row.first(max_length_tokens) for row in rows]
    longest = max(len(row.input_ids) for row in kept)
    assert input_ids.dtype == labels.dtype == torch.int64
    assert input_ids.tolist() == [[*row.input_ids] + [pad_id] * (longest - len(row.input_ids)) for row in kept]
    for row, ids, marks in zip(kept, input_ids.tolist(), labels.tolist(), strict=True):
        responses = [i for start, stop in row.responses for i in range(start, stop)]
        assert marks == [ids[i] if i in responses else IGNORE for i in range(longest)]


def test_the_cache_holds_the_splits_as_text_that_decodes_to_the_rows(tokens, splits, tiny_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder, trust_remote_code=False)
    expected = split_rows(read_rows("demo").rows)
    assert {name: len(part) for name, part in splits.items()} == SPLIT_ROWS
    for name, rows in expected.items():
        for row, token_row in zip(rows[:50], splits[name], strict=False):
            n_prompt = token_row.n_prompt_tokens
            assert tokenizer.decode(token_row.input_ids[:n_prompt]) == row.prompt
            assert tokenizer.decode(token_row.input_ids[n_prompt:]) == row.output + demo.END
            assert token_row.input_ids.count(tokenizer.eos_token_id) == 1
    assert tokens.counts == {"read": 2520} | SPLIT_ROWS


def test_equal_rows_find_the_cache_and_any_other_row_or_tokenizer_does_not(tokens, tiny_folder, tmp_path):
    checked = read_rows("demo")
    written_at = tokens.folder.stat().st_mtime_ns
    again = tokenize(checked, tiny_folder, tokens.folder.parent)
    assert again == tokens
    assert tokens.folder.stat().st_mtime_ns == written_at
    other = [Row(instruction=r.instruction, input=r.input, output=r.output + "!") for r in checked.rows]
    assert tokenize(CheckedRows(rows=tuple(other), dropped={}), tiny_folder, tmp_path).digest != tokens.digest
    spaced = tmp_path / "tokenizer"
    spaced.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (spaced / name).write_bytes((tiny_folder / name).read_bytes())
    (spaced / "tokenizer.json").write_text((spaced / "tokenizer.json").read_text() + "\n")
    assert tokenize(checked, spaced, tmp_path).digest != tokens.digest


def test_a_row_that_quotes_the_end_token_is_not_ended_by_it(tiny_folder, tmp_path):
    rows = rows_with(N_NEEDED, n_instructions=N_NEEDED)
    quoting = tuple(
        Row(instruction=f"{r.instruction} {demo.END}", input=demo.END, output=f"a{demo.END}b") for r in rows
    )
    tokenized = tokenize(CheckedRows(rows=quoting, dropped={"output null": 3}), tiny_folder, tmp_path)
    for row in load(tokenized.folder)["validation"]:
        assert row.input_ids.index(0) == len(row.input_ids) - 1
    assert tokenized.counts["read"] == N_NEEDED + 3
    assert tokenized.counts["dropped: output null"] == 3
    assert not list(tmp_path.glob(".tokens-*"))


def test_real_alpaca_rows_go_through_gpt2s_own_tokenizer(real_data, tmp_path):
    checked = read_rows(str(real_data / "alpaca" / "alpaca_subset.json"))
    tokenized = tokenize(checked, real_data / "gpt2-medium", tmp_path)
    search = load(tokenized.folder)["validation"]
    tokenizer = AutoTokenizer.from_pretrained(real_data / "gpt2-medium", trust_remote_code=False)
    first = split_rows(checked.rows)["validation"][0]
    assert tokenizer.decode(search[0].input_ids) == first.prompt + first.output + "<|endoftext|>"
    cut = [row for row in search if row.input_ids[-1] != tokenizer.eos_token_id]
    assert cut
    assert {len(row.input_ids) for row in cut} == {512}
    n_longer = tokenized.counts["longer than 512 tokens (validation, test)"]
    print(tokenized.counts, cut_counts(load(tokenized.folder)["train"], 256))
    assert n_longer >= len(cut)


def test_most_real_rows_have_a_kind_of_task(real_data):
    rows = read_rows(str(real_data / "alpaca" / "alpaca_subset.json")).rows
    counts = Counter(task_kind(row.instruction, row.input) for row in rows)
    print({kind: f"{n / len(rows):.1%}" for kind, n in counts.most_common()})
    assert counts.keys() == set(TASK_KINDS)
    assert counts["other"] < 0.3 * len(rows)


@pytest.mark.parametrize(
    ("instruction", "input", "kind"),
    [
        ("Generate a story.", "", "write"),
        ("Please write it in your own words.", "", "write"),
        ("Given a list of facts, summarize them.", "a, b", "rewrite"),
        ("Translate the sentence.", "Hi", "rewrite"),
        ("Make it shorter.", "Hello there", "rewrite"),
        ("Make a plan.", "", "write"),
        ("Is this spam? Classify it.", "Win!", "classify"),
        ("What is a prime?", "", "explain"),
        ("EXPLAIN: gravity", "", "explain"),
        ("Sing!", "", "other"),
        ("¿Qué?", "", "other"),
    ],
)
def test_the_first_verb_and_the_input_give_the_kind_of_task(instruction, input, kind):
    assert task_kind(instruction, input) == kind


@given(st.text(), st.text())
def test_any_instruction_has_a_kind_of_task(instruction, input):
    assert task_kind(instruction, input) in TASK_KINDS


def test_a_token_row_keeps_its_kind_of_task_in_the_cache_and_when_cut(splits):
    expected = split_rows(read_rows("demo").rows)
    for name, rows in expected.items():
        assert [row.kind for row in splits[name]] == [task_kind(row.instruction, row.input) for row in rows]
    row = splits["validation"][0]
    assert row.first(3).kind == row.kind != ""


def test_rows_of_equal_instruction_and_no_others_have_the_same_group_number_in_the_cache(tiny_folder, tmp_path):
    checked = CheckedRows(rows=tuple(rows_with(400, n_instructions=300)), dropped={})
    found = load(tokenize(checked, tiny_folder, tmp_path).folder)
    for name, rows in split_rows(checked.rows).items():
        by_group: dict[int, set[str]] = {}
        for row, token_row in zip(rows, found[name], strict=True):
            by_group.setdefault(token_row.group, set()).add(row.instruction)
        assert {len(instructions) for instructions in by_group.values()} == {1}
        assert len(by_group) == len({row.instruction for row in rows}) < len(rows)
        assert found[name][-1].first(3).group == found[name][-1].group


def test_a_cache_without_groups_makes_a_group_of_each_row(tokens, splits, tmp_path):
    load_from_disk(str(tokens.folder)).remove_columns("group").save_to_disk(str(tmp_path / "old"))
    assert [row.group for row in load(tmp_path / "old")["test"]] == list(range(len(splits["test"])))


def test_a_cache_without_kinds_is_read_and_not_taken_for_a_new_one(tokens, splits, tiny_folder, tmp_path):
    old = tmp_path / f"tokens-{tokens.digest[:16]}"  # as caches were named before
    load_from_disk(str(tokens.folder)).remove_columns("kind").save_to_disk(str(old))
    assert load(old)["validation"] == [replace(row, kind="") for row in splits["validation"]]
    again = tokenize(read_rows("demo"), tiny_folder, tmp_path)
    assert (again.folder != old, again.digest) == (True, tokens.digest)
    assert load(again.folder) == splits


def changed(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


DECIDES_TOKENS = {
    "the end token of the tokenizer": lambda folder: changed(folder / "tokenizer_config.json", eos_token="a"),
    "the end token of the config": lambda folder: changed(folder / "config.json", eos_token_id=5),
    "the end token of the generation config": lambda folder: changed(folder / "generation_config.json", eos_token_id=5),
    "the class of the tokenizer": lambda folder: changed(folder / "tokenizer_config.json", tokenizer_class="X"),
    "the architecture": lambda folder: changed(folder / "config.json", model_type="x"),
    "the vocabulary": lambda folder: changed(folder / "tokenizer.json", padding=None, more=1),
    "special tokens": lambda folder: written(folder, "special_tokens_map.json", '{"eos_token": "a"}'),
    "added tokens": lambda folder: written(folder, "added_tokens.json", '{"<new>": 1024}'),
    "words of a slow tokenizer": lambda folder: written(folder, "vocab.json", "{}"),
    "merges of a slow tokenizer": lambda folder: written(folder, "merges.txt", "a b"),
    "the chat template": lambda folder: written(folder, "chat_template.jinja", "{{ messages }}"),
    "a tokenizer of another kind": lambda folder: written(folder, "tokenizer.model", "x"),
    "a tokenizer for newer versions": lambda folder: written(folder, "tokenizer.5.0.0.json", "{}"),
}


def digest_of(folder: Path) -> str:
    return _digest({"validation": [Row(**GOOD_ROW)]}, folder, 512)


@pytest.fixture
def base(tiny_folder, tmp_path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "base")


@pytest.mark.parametrize("what", DECIDES_TOKENS)
def test_whatever_decides_tokens_decides_the_digest(what, base):
    before = digest_of(base)
    DECIDES_TOKENS[what](base)
    assert digest_of(base) != before


def test_where_held_out_rows_are_cut_decides_the_digest(base):
    rows = {"validation": [Row(**GOOD_ROW)]}
    assert _digest(rows, base, 256) != _digest(rows, base, 512)


def test_rows_of_two_kinds_with_equal_texts_have_two_digests(base):
    rows = [Row(instruction="a", input="", output="b"), CompletionRow(prompt="a", completion="b")]
    assert len({_digest({"train": [row]}, base, 512) for row in rows}) == 2


def test_what_decides_no_token_leaves_the_digest_alone(base):
    """It enters every trial's key: changing it makes all earlier trials strangers."""
    before = digest_of(base)
    changed(base / "config.json", n_layer=9, resid_pdrop=0.5)
    changed(base / "generation_config.json", temperature=0.5)
    written(base, "README.md", "about")
    (base / "model.safetensors").write_bytes(b"other weights")
    assert digest_of(base) == before == digest_of(base.rename(base.with_name("moved")))


@pytest.mark.parametrize("source", ["", "random:"])
def test_two_folders_that_differ_only_in_the_end_token_do_not_share_tokens(source, base, tmp_path):
    other = shutil.copytree(base, tmp_path / "other")
    changed(other / "tokenizer_config.json", eos_token="a")
    checked, ends = read_rows("demo"), []
    for folder in (base, other):
        found = base_model.find(f"{source}{folder}", tmp_path / "cache")
        rows = load(tokenize(checked, found.folder, tmp_path / "cache").folder)["validation"]
        ends.append({row.input_ids[-1] for row in rows})
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    assert ends == [{tokenizer.eos_token_id}, {tokenizer.convert_tokens_to_ids("a")}]


def test_a_tokenizer_without_an_end_token_is_refused(base, tmp_path):
    changed(base / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ConfigError, match=r"BASE_MODEL: the tokenizer .* has no end token"):
        tokenize(read_rows("demo"), base, tmp_path)


def test_a_path_into_the_home_of_an_unknown_user_is_a_file_that_is_not_there():
    with pytest.raises(DataError, match=r"no file '~nobody-of-this-name/rows\.json'"):
        read_rows("~nobody-of-this-name/rows.json")
