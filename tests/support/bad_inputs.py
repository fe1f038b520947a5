"""Bad command lines, spaces and rows, each with the words that its error must hold."""

import json

GOOD_ROW = {"instruction": "Add.", "input": "1 + 1", "output": "2"}
BAD_ROWS = {
    "no fields": ["not a row"],
    "instruction missing": {"output": "2"},
    "instruction null": GOOD_ROW | {"instruction": None},
    "instruction empty": GOOD_ROW | {"instruction": " \n"},
    "output missing": {"instruction": "Add."},
    "output null": GOOD_ROW | {"output": None},
    "output empty": GOOD_ROW | {"output": ""},
    "output not text": GOOD_ROW | {"output": 2},
    "input not text": GOOD_ROW | {"input": 1.5},
    "broken Unicode": GOOD_ROW | {"output": "\ud83d"},
}
_SPACE = """
parameters: {{rank: {{values: [{rank}]}}, precision: {{values: [{precision}]}}}}
fixed: {{alpha: 8, learning_rate: {rate}, targets: [{target}]}}
"""
_GOOD_VALUES = {"rank": "2", "precision": "nf4", "rate": "1.0e-4", "target": "attn.c_attn"}

BAD_SETTINGS = {
    "an unknown space": (["--space", "parto"], ["--space: no", "did you mean 'pareto'"]),
    "an unknown flag": (["--trails", "3"], ["--trials"]),
    "no trials": (["--trials", "0"], ["error: --trials: ", "got 0"]),
    "no steps": (["--steps", "0"], ["error: --steps: ", "got 0"]),
    "a name that leaves its folder": (["--name", "../x"], ["error: --name must be", "'../x'"]),
    "a similarity over 1": (["--min-similarity", "1.5"], ["error: --min-similarity: ", "1.5"]),
    "an unknown objective": (["--objective", "eval_loss"], ["objective", "did you mean 'eval_loss_nats'"]),
    "more GPUs than there are": (["--gpus-per-trial", "4"], ["error: --gpus-per-trial", "4", "0 GPUs"]),
    "an unknown device": (["--device", "tpu"], ["device", "tpu"]),
    "an address without a port": (["--address", "somewhere"], ["--address", "HOST:PORT"]),
    "money without a price": (
        ["--device", "cuda", "--max-usd", "5"],
        ["error: --max-usd is 5", "give --usd-per-gpu-hour"],
    ),
    "GPU-hours without a GPU": (["--max-gpu-hours", "2"], ["error: --max-gpu-hours is 2", "give --max-hours"]),
    "too few trials to be flat": (["--trials", "3", "--stop-when-flat"], ["--stop-when-flat", "--trials is 3"]),
    "an unknown sampler": (["--sampler", "nsga"], ["sampler", "did you mean 'nsga2'"]),
    "a grid over a range": (["--sampler", "grid"], ["method grid", "learning_rate"]),
    "a warm start from nothing": (["--warm-start", "first"], ["no sweep 'first'"]),
    "columns of no form": (["--columns", "question"], ["columns", "FIELD=COLUMN", "'question'"]),
    "a column for an unknown field": (["--columns", "outptu=answer"], ["columns", "did you mean 'output'"]),
    "a split of the demo's file": (
        ["--data", "demo", "--data-split", "test"],
        ["error: --data-split is 'test'", "is a file"],
    ),
    "a base of an unknown user": (["--base-model", "~nobody-of-this-name"], ["--base-model: ", "nobody-of-this-name"]),
    "an empty revision": (["--base-model", "org/name@", "--dry-run"], ["--base-model: ''", "'org/name@'"]),
    "a revision with a space": (["--base-model", "org/name@a b", "--dry-run"], ["--base-model: 'a b'"]),
    "a folder without a config": (["--base-model", "."], ["--base-model: no config.json"]),
}
BAD_SPACES = {
    "rank 0": ({"rank": "0"}, ["rank", "got 0"]),
    "a negative rank": ({"rank": "-2"}, ["rank", "got -2"]),
    "rank 1.5": ({"rank": "1.5"}, ["rank", "got 1.5"]),
    "8 bits": ({"precision": "8bit"}, ["precision", "'8bit'"]),
    "a learning rate that is no number": ({"rate": ".nan"}, ["learning_rate", "nan"]),
    "a bare c_proj": ({"target": "c_proj"}, ["targets", "did you mean"]),
}
BAD_DATA = {
    "missing.json": (None, "no file"),
    "empty.json": (b"", "is empty"),
    "truncated.json": (json.dumps([GOOD_ROW] * 9).encode()[:-9], "truncated"),
    "latin.json": ('[{"instruction": "na\u00efve"}]'.encode("latin-1"), "not UTF-8"),
    "bad.json": (json.dumps([GOOD_ROW] * 9 + [GOOD_ROW | {"output": None}]).encode(), "1 with output null"),
    "few.json": (json.dumps([GOOD_ROW]).encode(), "at least 296"),
}


def space_text(changes: dict[str, str]) -> str:
    """A space of one candidate with some of its values replaced, as YAML."""
    return _SPACE.format(**_GOOD_VALUES | changes)
