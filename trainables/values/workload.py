"""What all trials of one sweep share: the base model, the rows and the arithmetic."""

import hashlib
import re
from dataclasses import dataclass

from trainables.values.config import PROTOCOL_VERSION, ComputeDtype, RowKind, TrialConfig, Weights, canonical_json


def data_caption(data: str, split: str | None, columns: str | None) -> str:
    """Rows as the user named them, with their split and other column names where they were given."""
    return data + (f", split {split}" if split else "") + (f", columns {columns}" if columns else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What all trials of one sweep share: the base model, the rows and the arithmetic.

    Attributes:
        base_model: as the user named it: a hub id, a folder, "random:FOLDER" or "demo".
        base_folder: local folder that holds config, weights and tokenizer.
        base_fingerprint: SHA-256 over config and weights.
        weights: "pretrained", "random" (cost is real, quality is not), "stand-in" (trained from nothing) or "demo".
        data: as the user named it: a hub id, a file or "demo".
        data_split: of a hub id, see trainables.data.hub.fetch_rows; None is its train split, or the whole file.
        columns: other column names, see trainables.data.formats.parse_columns; None where they are the fields' own.
        data_folder: local Arrow cache of the tokenized splits.
        data_digest: SHA-256 over the split rows and all that decides their tokens.
        compute_dtype: of base weights and matrix products, the same for both precisions.
        stand_in_seconds: for how long a stand-in was trained, else None.
        base_note: what its folder says of its weights in base_note.txt, said beside figures; None without such a file.
        row_kind: what the rows are, which decides what a prompt looks like to the base.
        rows_found: what reading the rows came to, in words; None in older ledgers.
    """

    base_model: str
    base_folder: str
    base_fingerprint: str
    weights: Weights
    data: str
    data_folder: str
    data_digest: str
    compute_dtype: ComputeDtype
    stand_in_seconds: float | None = None
    base_note: str | None = None
    data_split: str | None = None
    columns: str | None = None
    row_kind: RowKind = "Alpaca"
    rows_found: str | None = None

    @property
    def base_commit(self) -> str | None:
        """The commit of a hub's repo that the base is of, which its folder in the hub's cache is named after."""
        found = re.search(r"/models--[^/]+/snapshots/([0-9a-f]{40})/?$", self.base_folder)
        return found[1] if found else None

    @property
    def data_caption(self) -> str:
        """See `data_caption`."""
        return data_caption(self.data, self.data_split, self.columns)

    @property
    def base_caption(self) -> str:
        """Whose weights every figure is of; says so where they are not pretrained ones."""
        return {
            "pretrained": self.base_model + (f" ({self.base_note})" if self.base_note else ""),
            "random": f"random weights ({self.base_model}): memory and time are real, loss and similarity are not",
            "stand-in": f"a stand-in base trained from nothing for {self.stand_in_seconds or 0:.0f} s "
            "(weights of its own, not those of GPT-2)",
            "demo": "the embedded demo model, not GPT-2 Medium",
        }[self.weights]

    def key(self, config: TrialConfig, *, protocol: int = PROTOCOL_VERSION) -> str:
        """SHA-256 (hex) of all that decides the outcome of `config` under this workload."""
        return hashlib.sha256(
            canonical_json(
                {
                    "config": config.to_dict(),
                    "compute_dtype": self.compute_dtype,
                    "base": self.base_fingerprint,
                    "data": self.data_digest,
                    "protocol": protocol,
                }
            ).encode()
        ).hexdigest()

    def protocol_of(self, config: TrialConfig, key: str) -> int | None:
        """The version under which a trial with this config has this key, the newest first; None if no version has."""
        for version in range(PROTOCOL_VERSION, 0, -1):
            if self.key(config, protocol=version) == key:
                return version
        return None
