"""From names of a base model and of rows to both on this machine, checked and tokenized: the parts of a Workload."""

from dataclasses import dataclass
from pathlib import Path

from trainables.data.formats import parse_columns
from trainables.data.rows import CheckedRows, local_file, read_rows
from trainables.data.splits import split_rows
from trainables.data.tokenized import TokenizedData, tokenize
from trainables.data.tokens import HELD_OUT_TOKENS, cut_counts, load
from trainables.models import base_model
from trainables.models.base_model import BaseModel
from trainables.values.beside import Beside
from trainables.values.config import ComputeDtype, RowKind
from trainables.values.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """A base model and rows that lie on this machine.

    Attributes:
        base: the model.
        fingerprint: of the model's config and weights.
        rows_source, data_split, columns: the rows as the user named them, see trainables.values.workload.Workload.
        row_kind, rows_found: what they are, and what was found, see trainables.values.workload.Workload.
        tokens: the rows, split and tokenized.
    """

    base: BaseModel
    fingerprint: str
    rows_source: str
    tokens: TokenizedData
    row_kind: RowKind
    rows_found: str
    data_split: str | None = None
    columns: str | None = None

    def workload(self, compute_dtype: ComputeDtype) -> Workload:
        """The Workload of these inputs in `compute_dtype`."""
        return Workload(
            base_model=self.base.source,
            base_folder=str(self.base.folder.resolve()),
            base_fingerprint=self.fingerprint,
            weights=self.base.weights,
            data=self.rows_source,
            data_split=self.data_split,
            columns=self.columns,
            data_folder=str(self.tokens.folder),
            data_digest=self.tokens.digest,
            compute_dtype=compute_dtype,
            stand_in_seconds=self.base.stand_in_seconds,
            base_note=self.base.note,
            row_kind=self.row_kind,
            rows_found=self.rows_found,
        )

    def cut_counts(self, n_tokens: int) -> dict[str, int]:
        """Training rows that are cut or dropped at so many tokens, see trainables.data.tokens.cut_counts."""
        return cut_counts(load(self.tokens.folder)["train"], n_tokens)


def check_local(
    base_source: str, rows_source: str, *, data_split: str | None = None, columns: str | None = None
) -> list[str]:
    """Check rows of a local file as `fetch` does; returns what of the two is on the hub, which alone could tell.

    Raises:
        DataError: see trainables.data.rows.read_rows, or there are too few rows.
    """
    on_hub = []
    if base_model.local_folder(base_source) is None:
        on_hub.append(f"base model {base_source}")
    if local_file(rows_source) is None:
        on_hub.append(f"data {rows_source}")
    else:
        split_rows(read_rows(rows_source, split=data_split, columns=parse_columns(columns)).rows)
    return on_hub


def fetch(
    base_source: str,
    rows_source: str,
    cache: Path,
    *,
    data_split: str | None = None,
    columns: str | None = None,
    rows: CheckedRows | None = None,
) -> Inputs:
    """Fetch, check, split and tokenize, each once; needs neither a device nor Ray.

    The weights are hashed while the rows are tokenized.

    Args:
        base_source, rows_source: as in trainables.models.base_model.find and trainables.data.rows.read_rows.
        cache: folder for random weights and tokens.
        data_split, columns: as in trainables.values.workload.Workload.
        rows: of that source, where they were read before.
    Raises:
        ConfigError, DataError, Unreachable: see those two, and trainables.data.tokenized.tokenize.
    """
    # First: bad rows show before a large model is fetched.
    checked = rows or read_rows(rows_source, split=data_split, columns=parse_columns(columns))
    base = base_model.find(base_source, cache)
    fingerprint = Beside(base.fingerprint)
    held_out_tokens = min(HELD_OUT_TOKENS, base_model.context_tokens(base.folder))
    tokens = tokenize(checked, base.folder, cache, held_out_tokens)
    return Inputs(
        base=base,
        fingerprint=fingerprint.result(),
        rows_source=rows_source,
        data_split=data_split,
        columns=columns,
        row_kind=checked.kind,
        rows_found=checked.summary,
        tokens=tokens,
    )
