"""From names of a base model and of rows to both on this machine, checked and tokenized: the parts of a Workload."""

from dataclasses import dataclass
from pathlib import Path

from trainables.data import tokens
from trainables.data.alpaca import read_rows
from trainables.data.tokens import TokenizedData, tokenize
from trainables.models import base_model
from trainables.models.architecture import vocabulary_size
from trainables.models.base_model import BaseModel
from trainables.values.config import ComputeDtype, Workload
from trainables.values.errors import ConfigError


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


def fetch(base_source: str, rows_source: str, cache: Path) -> Inputs:
    """Fetch, check, split and tokenize, each once; needs neither a device nor Ray.

    Args:
        base_source, rows_source: as in trainables.models.base_model.find and trainables.data.alpaca.read_rows.
        cache: folder for random weights and tokens.
    Raises:
        ConfigError, DataError, Unreachable: see those two; or see `check_tokens`.
    """
    checked = read_rows(rows_source)  # first: bad rows show before a large model is fetched
    base = base_model.find(base_source, cache)
    tokenized = tokenize(checked, base.folder, cache)
    check_tokens(tokenized, base)
    return Inputs(base=base, rows_source=rows_source, tokens=tokenized)


def check_tokens(tokenized: TokenizedData, base: BaseModel) -> None:
    """Refuse rows with a token that the base's embedding has no row for.

    A tokenizer may know more tokens than the embedding has (Gemma 3's names one for images), as long as no row uses
    them.

    Raises:
        ConfigError: some row does.
    """
    n_embedded = vocabulary_size(base.folder)
    highest = 0
    for rows in tokens.load(tokenized.folder).values():
        for row in rows:
            highest = max(highest, *row.input_ids)
    if highest >= n_embedded:
        raise ConfigError(
            f"BASE_MODEL: the vocabulary of the tokenizer in {str(base.folder)!r} is larger than the embedding: rows "
            f"have token {highest}, the embedding has {n_embedded} rows; one of them is of another model"
        )
