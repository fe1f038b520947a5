"""Alpaca rows: read and checked.

Rows come as `instruction`, `input` (may be empty or absent) and `output`. A bad row is counted
by reason and dropped; more than 5 % of them stop the sweep before any GPU is used.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trainables import demo
from trainables.data import hub
from trainables.values.errors import DataError

MAX_BAD_SHARE = 0.05
SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")
TABLE_SUFFIXES = (".csv", ".tsv")
FORMS = "a file of rows as a JSON list, JSON Lines or Parquet"
N_FILES_NAMED = 5
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""Half a surrogate pair: JSON can escape one, no tokenizer takes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One checked Alpaca row; `input` is "" where there is none."""

    instruction: str
    input: str
    output: str

    @property
    def prompt(self) -> str:
        """What the model reads before it answers."""
        context = f"### Input:\n{self.input}\n\n" if self.input else ""
        return f"### Instruction:\n{self.instruction}\n\n{context}### Response:\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRows:
    """Usable rows, and the number of unusable ones by reason."""

    rows: tuple[Row, ...]
    dropped: Mapping[str, int]

    @property
    def n_read(self) -> int:
        """Usable or not."""
        return len(self.rows) + sum(self.dropped.values())


def read_rows(source: str) -> CheckedRows:
    """Read and check rows from "demo", a local file (see FORMS) or a hub id.

    Raises:
        DataError: the file is missing, empty, truncated or in no form that is read, or more than 5 % of the rows are
            bad.
        Unreachable: the hub does not answer and nothing is cached.
    """
    path = local_file(source)
    return check_rows(_read_file(path) if path else hub.fetch_rows(source), source)


def local_file(source: str) -> Path | None:
    """The file that `source` names on this machine, existing or not; None where it names a repo on the hub."""
    if source == "demo":
        return demo.ROWS_FILE
    return Path(source).expanduser() if is_path(source) else None


def is_path(source: str) -> bool:
    """Whether `source` is a path, existing or not, rather than a hub id."""
    path = Path(source).expanduser()
    return path.suffix.lower() in (*SUFFIXES, *TABLE_SUFFIXES, ".txt") or path.exists()


def _read_file(path: Path) -> list[Any]:
    """All records of a local file; its content tells its form, its name only how a broken file is reported."""
    if path.is_dir():
        raise DataError(_not_a_file(path))
    if not path.is_file():
        raise DataError(f"DATA: no file {str(path)!r}")
    if path.stat().st_size == 0:
        raise DataError(f"DATA: {path} is empty")
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    if is_parquet or path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a byte order mark first
    except UnicodeDecodeError as error:
        raise DataError(f"DATA: {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    return _read_json(text, path)


def _read_json(text: str, path: Path) -> list[Any]:
    """Records of a JSON list or of JSON Lines, read strictly, since `datasets` fails on mixed types."""
    first = text.lstrip()[:1]
    if first == "[":
        return _parse_json(text, path)
    if first not in ("", "{"):
        what = "CSV, which is not read yet" if _is_table(text, path) else "in no form that is known here"
        raise DataError(f"DATA: {path} is {what}; give {FORMS}")
    if _is_one_object(text, path):
        raise DataError(f"DATA: {path} must hold a list of rows, got dict")
    lines = enumerate(text.split("\n"), start=1)  # not splitlines: text may hold other line ends, as U+2028
    return [_parse_json(line, path, first_line=n) for n, line in lines if line.strip()]


def _is_table(text: str, path: Path) -> bool:
    """Whether a text looks like CSV: by its file's name, or by field names in its first line."""
    return path.suffix.lower() in TABLE_SUFFIXES or "instruction" in text.lstrip().partition("\n")[0].lower()


def _not_a_file(folder: Path) -> str:
    """The message for a folder given in place of a file, with the files in it that could be meant."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        return f"DATA: {str(folder)!r} is a folder without {' or '.join(SUFFIXES)} files; give {FORMS}"
    more = f" and {len(files) - N_FILES_NAMED} more" if len(files) > N_FILES_NAMED else ""
    named = ", ".join(map(str, files[:N_FILES_NAMED]))
    return f"DATA: {str(folder)!r} is a folder; give one file, as there are {named}{more}"


def _is_one_object(text: str, path: Path) -> bool:
    """Whether a text is a single JSON object, rather than JSON Lines of one row, which would be one line."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return path.suffix.lower() == ".json" or "\n" in text.strip()


def _parse_json(text: str, path: Path, first_line: int = 1) -> Any:
    """A JSON value; `first_line` is the text's line in the file, for messages."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"DATA: {path} is not whole JSON (line {line}: {error.msg}); truncated?") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
        raise DataError(f"DATA: {path} is not rows as JSON (from line {first_line}: {error})") from None


def _read_parquet(path: Path) -> list[Any]:
    from datasets import Dataset

    try:
        with TemporaryDirectory(prefix="qlora-sweep-") as cache:
            return Dataset.from_parquet(str(path), cache_dir=cache).to_list()
    except Exception as error:  # datasets wraps every cause
        raise DataError(f"DATA: {path} is not a readable Parquet file ({type(error).__name__}); truncated?") from None


def check_rows(records: Iterable[Any], source: str) -> CheckedRows:
    """Keep the good rows of `records`, count the bad ones by reason.

    Raises:
        DataError: more than 5 % are bad, or there are none at all.
    """
    rows: list[Row] = []
    dropped: Counter[str] = Counter()
    for record in records:
        reason = _fault(record)
        if reason:
            dropped[reason] += 1
        else:
            rows.append(
                Row(instruction=record["instruction"], input=record.get("input") or "", output=record["output"])
            )
    n_read = len(rows) + dropped.total()
    if not n_read:
        raise DataError(f"DATA: {source} holds no rows")
    if dropped.total() > MAX_BAD_SHARE * n_read:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in dropped.most_common())
        raise DataError(f"DATA: {dropped.total()} of {n_read} rows of {source} are bad (at most 5 % may be): {reasons}")
    return CheckedRows(rows=tuple(rows), dropped=dict(dropped))


def _fault(record: Any) -> str | None:
    """Why a record is no usable row; None if it is one."""
    if not isinstance(record, Mapping):
        return "no fields"
    for name in ("instruction", "output"):
        value = record.get(name)
        if name not in record:
            return f"{name} missing"
        if value is None:
            return f"{name} null"
        if not isinstance(value, str):
            return f"{name} not text"
        if not value.strip():
            return f"{name} empty"
    if not isinstance(record.get("input"), str | None):
        return "input not text"
    texts = (record["instruction"], record.get("input") or "", record["output"])
    return "broken Unicode" if any(map(HALF_CHARACTER.search, texts)) else None
