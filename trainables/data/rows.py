"""Rows of any format: read from the hub, a file or the demo, checked, and what was found said in one line.

A bad row is counted by reason and dropped; more than 5 % of them stop the sweep before any GPU is used.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables import demo
from trainables.data import files, hub
from trainables.data.chat import NO_ASSISTANT_TURN, ChatRow
from trainables.data.completion import CompletionRow
from trainables.data.formats import FORMATS, AnyRow, Format, check_fields, recognised
from trainables.values.config import RowKind
from trainables.values.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

MAX_BAD_SHARE = 0.05
NO_FIELDS = "no fields"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRows:
    """Usable rows, all of one format, and the number of unusable ones by reason."""

    rows: tuple[AnyRow, ...]
    dropped: Mapping[str, int]

    @property
    def n_read(self) -> int:
        """Usable or not."""
        return len(self.rows) + sum(self.dropped.values())

    @property
    def kind(self) -> RowKind:
        """Of all of them."""
        if isinstance(self.rows[0], ChatRow):
            return "chat"
        return "completion" if isinstance(self.rows[0], CompletionRow) else "Alpaca"

    @property
    def summary(self) -> str:
        """What was found, e.g. "1,500 chat rows, 3,200 assistant turns"."""
        n_rows = f"{len(self.rows):,}"
        found = f"{n_rows} rows with Alpaca's fields" if self.kind == "Alpaca" else f"{n_rows} {self.kind} rows"
        if self.kind == "chat":
            n_turns = sum(row.n_assistant_turns for row in self.rows)  # type: ignore[union-attr]
            found += f", {n_turns:,} assistant turns"
        return found


def read_rows(source: str, *, split: str | None = None, columns: Mapping[str, str] | None = None) -> CheckedRows:
    """Read and check rows from "demo", a local file (see trainables.data.files.FORMS) or a hub id.

    Args:
        split: of a data set on the hub, see trainables.data.hub.fetch_rows; None is "train".
        columns: field -> column, where columns go by other names than the fields of a format.
    Raises:
        ConfigError: `split` with a file, or `columns` names what does not exist.
        DataError: the file is missing, empty, truncated or in no form that is read, its columns are those of no
            format or of several, or more than 5 % of the rows are bad.
        Unreachable: the hub does not answer and nothing is cached.
    """
    columns = columns or {}
    check_fields(columns)
    path = local_file(source)
    if path is not None and split is not None:
        raise ConfigError(f"data_split is {split!r}, but DATA {source!r} is a file; only a hub id has splits")
    if path is not None:
        names = [field for form in FORMATS for field in form.fields]
        records = files.read_records(path, (*names, *columns.values()))
    else:
        records = hub.fetch_rows(source, split or hub.SPLIT)
    checked = check_rows(records, source, columns)
    logger.info("data %s: %s", source, checked.summary)
    return checked


def local_file(source: str) -> Path | None:
    """The file that `source` names on this machine, existing or not; None where it names a repo on the hub."""
    if source == "demo":
        return demo.ROWS_FILE
    return Path(os.path.expanduser(source)) if is_path(source) else None


def is_path(source: str) -> bool:
    """Whether `source` is a path, existing or not, rather than a hub id."""
    path = Path(os.path.expanduser(source))
    return path.suffix.lower() in (*files.SUFFIXES, ".txt") or path.exists()


def check_rows(records: Iterable[Any], source: str, columns: Mapping[str, str] | None = None) -> CheckedRows:
    """Keep the good rows of `records`, count the bad ones by reason.

    Conversations without an assistant turn are dropped and counted, but not taken for bad.

    Raises:
        ConfigError, DataError: see `read_rows`; no row is left.
    """
    records, columns = list(records), columns or {}
    if not records:
        raise DataError(f"DATA: {source} holds no rows")
    form = _format_of(records, columns, source)
    rows: list[AnyRow] = []
    dropped: Counter[str] = Counter()
    for record in records:
        if not isinstance(record, Mapping):
            dropped[NO_FIELDS] += 1
            continue
        renamed = {**record, **{field: record[column] for field, column in columns.items() if column in record}}
        reason = form.fault(renamed)
        if reason:
            dropped[reason] += 1
        else:
            rows.append(form.row(renamed))
    _refuse_bad(dropped, len(records), source)
    return CheckedRows(rows=tuple(rows), dropped=dict(dropped))


def _format_of(records: list[Any], columns: Mapping[str, str], source: str) -> Format:
    """The format of some records by all their columns; the first one known where no record has any."""
    names: dict[str, None] = {}
    for record in records:
        if isinstance(record, Mapping):
            names.update(dict.fromkeys(str(name) for name in record if name is not None))
    return recognised(names, columns, source) if names else FORMATS[0]


def _refuse_bad(dropped: Counter[str], n_read: int, source: str) -> None:
    reasons = ", ".join(f"{count} with {reason}" for reason, count in dropped.most_common())
    n_bad = dropped.total() - dropped[NO_ASSISTANT_TURN]
    if n_bad > MAX_BAD_SHARE * n_read:
        raise DataError(f"DATA: {n_bad} of {n_read} rows of {source} are bad (at most 5 % may be): {reasons}")
    if dropped.total() == n_read:
        raise DataError(f"DATA: none of the {n_read} rows of {source} can be used: {reasons}")
