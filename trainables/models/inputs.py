"""From names of a base model and of rows to both on this machine, checked and tokenized: the parts of a Workload."""

from dataclasses import dataclass
from pathlib import Path

from trainables.data.alpaca import local_file, read_rows
from trainables.data.splits import split_rows
from trainables.data.tokens import TokenizedData, load, n_longer, tokenize
from trainables.models import base_model
from trainables.models.base_model import BaseModel
from trainables.values.config import ComputeDtype, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """A base model and rows that lie on this machine.

    Attributes:
        base: the model.
        rows_source: the rows as the user named them.
        tokens: the rows, split and tokenized.
    """

    base: BaseModel
    rows_source: str
    tokens: TokenizedData

    def workload(self, compute_dtype: ComputeDtype) -> Workload:
        """The Workload of these inputs in `compute_dtype`."""
        return Workload(
            base_model=self.base.source,
            base_folder=str(self.base.folder.resolve()),
            base_fingerprint=self.base.fingerprint(),
            weights=self.base.weights,
            data=self.rows_source,
            data_folder=str(self.tokens.folder),
            data_digest=self.tokens.digest,
            compute_dtype=compute_dtype,
            stand_in_seconds=self.base.stand_in_seconds,
        )

    def n_longer(self, n_tokens: int) -> int:
        """Training rows that do not fit into so many tokens."""
        return n_longer(load(self.tokens.folder)["train"], n_tokens)


def check_local(base_source: str, rows_source: str) -> list[str]:
    """Check rows of a local file as `fetch` does; returns what of the two is on the hub, which alone could tell.

    Raises:
        DataError: see trainables.data.alpaca.read_rows, or there are too few rows.
    """
    on_hub = []
    if base_model.local_folder(base_source) is None:
        on_hub.append(f"base model {base_source}")
    if local_file(rows_source) is None:
        on_hub.append(f"data {rows_source}")
    else:
        split_rows(read_rows(rows_source).rows)
    return on_hub


def fetch(base_source: str, rows_source: str, cache: Path) -> Inputs:
    """Fetch, check, split and tokenize, each once; needs neither a device nor Ray.

    Args:
        base_source, rows_source: as in trainables.models.base_model.find and trainables.data.alpaca.read_rows.
        cache: folder for random weights and tokens.
    Raises:
        ConfigError, DataError, Unreachable: see those two.
    """
    checked = read_rows(rows_source)  # first: bad rows show before a large model is fetched
    base = base_model.find(base_source, cache)
    return Inputs(base=base, rows_source=rows_source, tokens=tokenize(checked, base.folder, cache))
