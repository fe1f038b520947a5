"""Rows as people have them: formats told apart by their columns, containers by what they hold."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.bad_inputs import GOOD_ROW
from trainables.data.alpaca import Row
from trainables.data.chat import ChatRow, Message
from trainables.data.completion import CompletionRow
from trainables.data.formats import FORMATS, parse_columns
from trainables.data.rows import check_rows, read_rows
from trainables.values.errors import ConfigError, DataError

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
]
SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello."},
]
CHAT = ChatRow(messages=(Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello.")))
COMPLETION = {"prompt": "1 + 1 =", "completion": " 2"}
RECORDS = {
    "alpaca": (GOOD_ROW, Row(**GOOD_ROW), "9 rows with Alpaca's fields"),
    "messages": ({"messages": MESSAGES}, CHAT, "9 chat rows, 9 assistant turns"),
    "sharegpt": ({"conversations": SHAREGPT}, CHAT, "9 chat rows, 9 assistant turns"),
    "messages called conversations": ({"conversations": MESSAGES}, CHAT, "9 chat rows, 9 assistant turns"),
    "prompt and completion": (COMPLETION, CompletionRow(**COMPLETION), "9 completion rows"),
}


def as_csv(records: list[dict], delimiter: str = ",") -> str:
    """A table; what is no text is in its cell as JSON."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, records[0], delimiter=delimiter)
    writer.writeheader()
    for record in records:
        writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in record.items()})
    return file.getvalue()


def as_parquet(records: list[dict]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink)
    return sink.getvalue()


CONTAINERS: dict[str, Callable[[list[dict]], str | bytes]] = {
    "JSON": json.dumps,
    "JSON Lines": lambda records: "\n".join(map(json.dumps, records)),
    "CSV": as_csv,
    "CSV with semicolons": lambda records: as_csv(records, ";"),
    "CSV with tabs": lambda records: as_csv(records, "\t"),
    "CSV with a byte order mark": lambda records: "\ufeff" + as_csv(records),
    "Parquet": as_parquet,
}


def written(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("form", RECORDS)
def test_every_format_is_read_from_every_container_and_what_was_found_is_said(form, container, tmp_path, caplog):
    record, row, summary = RECORDS[form]
    source = written(tmp_path / "rows.txt", CONTAINERS[container]([record] * 9))
    with caplog.at_level("INFO"):
        assert read_rows(source).rows == (row,) * 9
    assert caplog.messages == [f"data {source}: {summary}"]


def test_turns_are_counted_with_thousands(caplog):
    turns = MESSAGES[1:] * 2
    assert check_rows([{"messages": turns}] * 1600, "x").summary == "1,600 chat rows, 3,200 assistant turns"


@settings(max_examples=40)
@given(st.lists(st.tuples(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip)), min_size=1))
def test_any_text_is_read_back_from_a_table(tmp_path_factory, pairs):
    records = [{"prompt": p, "completion": c} for p, c in pairs]
    source = written(tmp_path_factory.mktemp("csv") / "rows.csv", as_csv(records))
    assert read_rows(source).rows == tuple(CompletionRow(**record) for record in records)


def test_line_ends_inside_a_cell_stay_as_they_are(tmp_path):
    record = {"prompt": "one\r\ntwo\rthree\nfour", "completion": "a\r\n"}
    source = written(tmp_path / "rows.csv", as_csv([record]))
    assert read_rows(source).rows == (CompletionRow(**record),)


def test_other_column_names_are_read_by_a_mapping(tmp_path):
    source = written(tmp_path / "a.csv", as_csv([{"question": "1 + 1?", "answer": "2", "id": "7"}] * 9))
    columns = parse_columns("instruction=question, output=answer")
    assert columns == {"instruction": "question", "output": "answer"}
    assert read_rows(source, columns=columns).rows == (Row(instruction="1 + 1?", input="", output="2"),) * 9
    chats = [{"dialogue": SHAREGPT}] * 9
    assert check_rows(chats, "x", {"messages": "dialogue"}).rows == (CHAT,) * 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("instruction", "columns must be FIELD=COLUMN"),
        ("instruction=", "columns must be FIELD=COLUMN"),
        ("output=a,output=b", "columns must be FIELD=COLUMN"),
        ("question=instruction", "columns: no field 'question'; it is FIELD=COLUMN: instruction=question"),
        ("instructions=question", "columns: no field 'instructions'; did you mean 'instruction'?"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_columns(text)


def test_a_mapping_from_a_column_that_is_not_there_names_the_nearest():
    with pytest.raises(ConfigError, match=r"columns: my.csv has no column 'questoin' .*did you mean 'question'"):
        check_rows([{"question": "a", "answer": "b"}], "my.csv", {"instruction": "questoin", "output": "answer"})


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (("question", "answer"), "--columns instruction=question,output=answer"),
        (("Question", "Answer"), "--columns instruction=Question,output=Answer"),
        (("instruction", "context", "response"), "--columns output=response,input=context"),
        (("prompt", "response"), "--columns completion=response"),
        (("dialogue", "id"), "--columns messages=dialogue"),
        (("mesages", "id"), "--columns messages=mesages"),
        (("text",), "--columns instruction=COLUMN,output=COLUMN"),
    ],
)
def test_unknown_columns_are_refused_with_the_mapping_to_write(names, advice):
    with pytest.raises(DataError) as caught:
        check_rows([dict.fromkeys(names, "x")] * 9, "my.json")
    assert str(caught.value).endswith(f"say {advice}")
    assert f"my.json has the columns {', '.join(sorted(names))}, which are no known format" in str(caught.value)


@pytest.mark.parametrize("form", [form for form in FORMATS if len(form.needed) == 2])
def test_columns_of_two_formats_are_refused_until_one_is_chosen(form):
    record = {**GOOD_ROW, **COMPLETION}
    with pytest.raises(DataError, match=r"columns of Alpaca .* and completion .*--columns instruction=instruction or"):
        check_rows([record] * 9, "x")
    first = form.needed[0]
    row = check_rows([record] * 9, "x", {first: first}).rows[0]
    assert row == form.row(record)


def test_messages_beside_a_prompt_are_the_conversation():
    """As HuggingFaceH4/ultrachat_200k has them."""
    assert check_rows([{"prompt": "Hi", "prompt_id": "a", "messages": MESSAGES}] * 9, "x").rows == (CHAT,) * 9


BAD_CHATS = {
    "messages missing": None,
    "messages not a list": "Hi",
    "messages empty": [],
    "message without fields": ["Hi", "Hello"],
    "unknown role": [{"role": "narrator", "content": "Once"}],
    "message without text": [MESSAGES[1], {"role": "assistant", "content": None, "tool_calls": []}],
    "empty message": [MESSAGES[1], {"role": "assistant", "content": " "}],
    "message of weight 0": [MESSAGES[1], MESSAGES[2] | {"weight": 0}],
    "broken Unicode": [MESSAGES[1], {"role": "assistant", "content": "\ud83d"}],
    "no assistant turn": MESSAGES[:2],
}


@pytest.mark.parametrize("reason", BAD_CHATS)
def test_a_bad_conversation_is_dropped_for_the_right_reason(reason):
    records = [{"messages": MESSAGES}] * 19 + [{"messages": BAD_CHATS[reason]}]
    checked = check_rows(records, "x")
    assert (checked.rows, checked.dropped) == ((CHAT,) * 19, {reason: 1})


def test_conversations_without_an_assistant_are_counted_and_no_reason_to_stop():
    records = [{"messages": MESSAGES}] * 5 + [{"messages": MESSAGES[:2]}] * 5
    assert check_rows(records, "x").dropped == {"no assistant turn": 5}
    with pytest.raises(DataError, match="none of the 5 rows of x can be used: 5 with no assistant turn"):
        check_rows(records[5:], "x")


def test_what_follows_the_last_assistant_turn_is_left_out():
    assert check_rows([{"messages": [*MESSAGES, MESSAGES[1]]}] * 2, "x").rows == (CHAT,) * 2


def test_openais_list_of_text_parts_is_one_text():
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo."}]
    assert check_rows([{"messages": [*MESSAGES[:2], MESSAGES[2] | {"content": parts}]}], "x").rows == (CHAT,)
    image = [{"type": "image_url", "image_url": "x"}]
    with pytest.raises(DataError, match="1 with message without text"):
        check_rows([{"messages": [MESSAGES[1] | {"content": image}, MESSAGES[2]]}], "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('instruction,output\na,"b', r"is not whole CSV \(line \d: unexpected end of data\); truncated\?"),
        ("instruction,output\n", "holds no rows"),
        ("instruction,output\na\n", "1 of 1 rows .* 1 with output null"),
    ],
)
def test_a_damaged_table_is_refused_with_what_is_wrong(content, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_rows(written(tmp_path / "rows.csv", content))


def test_a_split_of_a_file_is_refused(tmp_path):
    source = written(tmp_path / "a.json", json.dumps([GOOD_ROW]))
    with pytest.raises(ConfigError, match=r"data_split is 'test', but DATA .* is a file; only a hub id has splits"):
        read_rows(source, split="test")
