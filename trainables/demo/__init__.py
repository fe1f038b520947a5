"""The embedded demo: a tiny pretrained GPT-2, its tokenizer and its rows, for machines without GPU and network.

`python -m trainables.demo.build` makes every file here that is not Python; `...build.check` shows what
tuning, 4 bits and the rank do to it. Importing this package costs nothing: no torch.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
ROWS_FILE = FOLDER / "alpaca_demo.json"
BUILD_RECORD_FILE = FOLDER / "build_record.json"
END = "<|endoftext|>"
MAX_LENGTH_TOKENS = 128

__all__ = ["BUILD_RECORD_FILE", "END", "FOLDER", "MAX_LENGTH_TOKENS", "ROWS_FILE"]
