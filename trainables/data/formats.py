"""The forms that rows come in, told apart by their columns; other column names by a mapping."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from trainables.data import chat
from trainables.data.alpaca import Row
from trainables.data.chat import ChatRow
from trainables.data.completion import CompletionRow
from trainables.values.errors import ConfigError, DataError, did_you_mean

HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""Half a surrogate pair: JSON can escape one, no tokenizer takes it."""

AnyRow = Row | CompletionRow | ChatRow
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One form of rows.

    Attributes:
        name: for people.
        needed, optional: its columns.
        fault: why a record is no usable row; None if it is one.
        row: the row of a record without a fault.
    """

    name: str
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()
    fault: Callable[[Record], str | None]
    row: Callable[[Record], AnyRow]

    @property
    def fields(self) -> tuple[str, ...]:
        """All columns that it reads."""
        return (*self.needed, *self.optional)


def _text_fault(record: Record, *names: str) -> str | None:
    """Why one of some fields is no text to learn from."""
    for name in names:
        value = record.get(name)
        if name not in record:
            return f"{name} missing"
        if value is None:
            return f"{name} null"
        if not isinstance(value, str):
            return f"{name} not text"
        if not value.strip():
            return f"{name} empty"
        if HALF_CHARACTER.search(value):
            return "broken Unicode"
    return None


def _alpaca_fault(record: Record) -> str | None:
    given = record.get("input")
    if not isinstance(given, str | None):
        return _text_fault(record, "instruction", "output") or "input not text"
    broken = "broken Unicode" if HALF_CHARACTER.search(given or "") else None
    return _text_fault(record, "instruction", "output") or broken


def _alpaca_row(record: Record) -> Row:
    return Row(instruction=record["instruction"], input=record.get("input") or "", output=record["output"])


def _completion_fault(record: Record) -> str | None:
    return _text_fault(record, "prompt", "completion")


def _completion_row(record: Record) -> CompletionRow:
    return CompletionRow(prompt=record["prompt"], completion=record["completion"])


def _chat_format(name: str, column: str) -> Format:
    def messages(record: Record) -> Any:
        value = record.get(column)
        if isinstance(value, str) and value.lstrip().startswith("["):  # a table's cell holds the list as JSON
            try:
                return json.loads(value)
            except (ValueError, RecursionError):
                return value
        return value

    def fault(record: Record) -> str | None:
        if record.get(column) is None:
            return f"{column} missing"
        turns = messages(record)
        reason = chat.fault(turns)
        if reason is None and any(HALF_CHARACTER.search(turn.content) for turn in chat.row_of(turns).messages):
            return "broken Unicode"
        return reason

    return Format(name=name, needed=(column,), fault=fault, row=lambda record: chat.row_of(messages(record)))


FORMATS = (
    Format(
        name="Alpaca",
        needed=("instruction", "output"),
        optional=("input",),
        fault=_alpaca_fault,
        row=_alpaca_row,
    ),
    _chat_format("chat", "messages"),
    _chat_format("ShareGPT", "conversations"),
    Format(name="completion", needed=("prompt", "completion"), fault=_completion_fault, row=_completion_row),
)
LIKELY_NAMES = {
    "instruction": ("question", "query", "problem", "prompt", "instruct", "task", "inputs"),
    "input": ("context",),
    "output": ("answer", "response", "solution", "completion", "target", "targets", "reply", "chosen"),
    "messages": ("conversation", "chat", "dialog", "dialogue", "turns", "chosen"),
    "prompt": ("question", "query", "instruction"),
    "completion": ("response", "answer", "output", "target"),
}
"""A field -> names that columns of other data sets have for it."""


def parse_columns(text: str | None) -> dict[str, str]:
    """Field -> column from "instruction=question,output=answer"; nothing from None.

    Raises:
        ConfigError: it is not of this form, or names a field that no format has.
    """
    columns: dict[str, str] = {}
    for part in text.split(",") if text is not None else ():
        field, mark, column = (piece.strip() for piece in part.partition("="))
        if not (field and mark and column) or field in columns:
            raise ConfigError(f"columns must be FIELD=COLUMN,..., as instruction=question,output=answer; got {text!r}")
        columns[field] = column
    check_fields(columns)
    return columns


def check_fields(columns: Mapping[str, str]) -> None:
    """Refuse a mapping from a field that no format has."""
    fields = [field for form in FORMATS for field in form.fields]
    for field, column in columns.items():
        if field not in fields:
            order = f"; it is FIELD=COLUMN: {column}={field}" if column in fields else ""
            raise ConfigError(f"columns: no field {field!r}{order or did_you_mean(field, fields)}")


def recognised(names: Collection[str], columns: Mapping[str, str], source: str) -> Format:
    """The one format that rows with columns of these names have.

    Args:
        columns: field -> column, for other names than the fields' own; chooses among formats, too.
        source: of the rows, for messages.
    Raises:
        ConfigError: `columns` names a field or a column that does not exist.
        DataError: none fits, or several do.
    """
    check_fields(columns)
    for field, column in columns.items():
        if column not in names:
            raise ConfigError(f"columns: {source} has no column {column!r} for {field}{did_you_mean(column, names)}")
    present = {*names, *columns}
    matches = [form for form in FORMATS if {*form.needed} <= present and {*columns} <= {*form.fields}]
    if len(matches) == 1:
        return matches[0]
    have = ", ".join(sorted(names))
    if matches:
        ways = " or ".join(f"--columns {form.needed[0]}={form.needed[0]}" for form in matches)
        both = " and ".join(f"{form.name} ({', '.join(form.needed)})" for form in matches)
        raise DataError(f"DATA: {source} has the columns of {both}: {have}; choose with {ways}")
    known = ", ".join("+".join(form.needed) for form in FORMATS)
    nearest, advice = _nearest(names)
    raise DataError(
        f"DATA: {source} has the columns {have}, which are no known format ({known}); nearest is {nearest.name}: "
        f"say --columns {advice}"
    )


def _nearest(names: Collection[str]) -> tuple[Format, str]:
    """The format that lacks the fewest columns, and the mapping to write for it."""
    guesses = [(form, _guess(form, names)) for form in FORMATS]

    def n_present(guess: tuple[Format, dict[str, str]]) -> tuple[float, int]:
        form, mapping = guess
        known = [field for field in form.needed if field in names or field in mapping]
        return len(known) / len(form.needed), -len(mapping)

    form, mapping = max(guesses, key=n_present)
    lacking = {field: "COLUMN" for field in form.needed if field not in names and field not in mapping}
    return form, ",".join(f"{field}={column}" for field, column in {**mapping, **lacking}.items())


def _guess(form: Format, names: Collection[str]) -> dict[str, str]:
    """Field -> column for the fields of a format whose columns go by another name that is known here."""
    free = {name.casefold(): name for name in names if name not in form.fields}
    mapping: dict[str, str] = {}
    for field in form.fields:
        for likely in (field, *LIKELY_NAMES.get(field, ()), *get_close_matches(field, free, n=1, cutoff=0.8)):
            if field not in names and field not in mapping and likely in free:
                mapping[field] = free.pop(likely)
    return mapping
