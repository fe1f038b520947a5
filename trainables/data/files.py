"""Records of a local file: a JSON list, JSON Lines, CSV or Parquet. What a file holds tells its form, not its name."""

import csv
import io
import json
import sys
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trainables.values.errors import DataError

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
TABLE_SUFFIXES = (".csv", ".tsv")
FORMS = "a file of rows as a JSON list, JSON Lines, CSV or Parquet"
N_FILES_NAMED = 5
DELIMITERS = (",", "\t", ";")


def read_records(path: Path, columns: Collection[str]) -> list[Any]:
    """All records of a file, good or bad.

    Args:
        columns: names by which the header of a table is known.
    Raises:
        DataError: the file is missing, empty, truncated, or in no form that is read.
    """
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
        text = path.read_bytes().decode("utf-8-sig")  # some editors put a byte order mark first
    except UnicodeDecodeError as error:
        raise DataError(f"DATA: {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    if text.lstrip()[:1] not in ("", "[", "{"):
        if _is_table(text, path, columns):
            return _read_table(text, path)
        raise DataError(f"DATA: {path} is in no form that is known here; give {FORMS}")
    return _read_json(text, path)


def _not_a_file(folder: Path) -> str:
    """The message for a folder given in place of a file, with the files in it that could be meant."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        return f"DATA: {str(folder)!r} is a folder without {' or '.join(SUFFIXES)} files; give {FORMS}"
    more = f" and {len(files) - N_FILES_NAMED} more" if len(files) > N_FILES_NAMED else ""
    named = ", ".join(map(str, files[:N_FILES_NAMED]))
    return f"DATA: {str(folder)!r} is a folder; give one file, as there are {named}{more}"


def _is_table(text: str, path: Path, columns: Collection[str]) -> bool:
    """Whether a text is a table: by its file's name, or by a known column name in its first line."""
    header = _header(text)
    delimiter = _delimiter(header)
    cells = [cell.strip().strip('"').lower() for cell in header.split(delimiter)]
    return path.suffix.lower() in TABLE_SUFFIXES or any(name.lower() in cells for name in columns)


def _header(text: str) -> str:
    return text.lstrip().partition("\n")[0]


def _delimiter(header: str) -> str:
    return max(DELIMITERS, key=header.count)


def _read_table(text: str, path: Path) -> list[Any]:
    """Records of a table whose first line names its columns; a missing cell is None."""
    csv.field_size_limit(sys.maxsize)  # a long answer is one cell
    lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(_header(text)), strict=True)
    try:
        return list(lines)
    except csv.Error as error:
        raise DataError(f"DATA: {path} is not whole CSV (line {lines.line_num}: {error}); truncated?") from None


def _read_json(text: str, path: Path) -> list[Any]:
    """Records of a JSON list or of JSON Lines, read strictly, since `datasets` fails on mixed types."""
    if text.lstrip()[:1] == "[":
        return _parse_json(text, path)
    if _is_one_object(text, path):
        raise DataError(f"DATA: {path} must hold a list of rows, got dict")
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = enumerate(plain.split("\n"), start=1)  # not splitlines: text may hold other line ends, as U+2028
    return [_parse_json(line, path, first_line=n) for n, line in lines if line.strip()]


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
