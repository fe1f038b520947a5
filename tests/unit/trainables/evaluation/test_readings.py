"""Readings: what a model made of rows is read once, and is that model's and those rows'."""

import pytest
import torch

from trainables.data.tokens import TokenRow
from trainables.evaluation import readings
from trainables.evaluation.readings import Readings

ROWS = (TokenRow(input_ids=(1, 2, 3), n_prompt_tokens=1), TokenRow(input_ids=(4, 5), n_prompt_tokens=1))
OTHERS = ROWS[:1]
N_STATES = 1000


class CountingReader:
    """Each reading is told from the others by its number."""

    def __init__(self) -> None:
        self.n_read = 0

    def texts(self, rows):
        self.n_read += 1
        return [[self.n_read]] * len(rows)

    def states(self, rows):
        return torch.full((N_STATES, 1), float(self.n_read))


@pytest.fixture
def reader() -> CountingReader:
    return CountingReader()


def adapter(name: str) -> dict[str, bytes]:
    return {"adapter_config.json": b"{}", "adapter_model.safetensors": name.encode()}


def test_a_model_reads_a_set_of_rows_once(reader):
    kept = Readings()
    first = kept.of(reader, ROWS, adapter("a"))
    assert kept.of(reader, list(ROWS), dict(reversed(adapter("a").items()))) is first
    assert (first.texts, reader.n_read) == ([[1], [1]], 1)


@pytest.mark.parametrize(
    ("rows", "files"),
    [
        (OTHERS, adapter("a")),
        (ROWS, adapter("b")),
        (ROWS, None),
        (ROWS, {"adapter_config.json": b"{}adapter", "adapter_model.safetensors": b"a"}),
        (ROWS, {"adapter_config.json": b"{ }", "adapter_model.safetensors": b"a"}),
        (ROWS, {"adapter_config.json": b"{}", "adapter_model.safetensors": b"a", "more": b""}),
    ],
)
def test_other_rows_or_another_model_are_read_anew(reader, rows, files):
    kept = Readings()
    kept.of(reader, ROWS, adapter("a"))
    assert kept.of(reader, rows, files).texts[0] == [2]
    assert kept.of(reader, ROWS, adapter("a")).texts[0] == [1]


def test_what_finds_no_room_is_read_each_time_and_what_is_kept_stays(reader, monkeypatch):
    """Seeds are read in turn: of three that took each other's place none would be there when it is needed."""
    monkeypatch.setattr(readings, "HOST_BYTES", 3 * 4 * N_STATES)
    kept = Readings()
    assert kept.of_base(ROWS) is None
    base = kept.of(reader, ROWS, None)
    found = [kept.of(reader, ROWS, adapter(name)).texts[0][0] for name in ("a", "b", "c") * 2]
    assert found == [2, 3, 4, 2, 3, 5]
    assert kept.of_base(ROWS) is kept.of(reader, ROWS, None) is base


def test_one_that_is_larger_than_the_room_is_read_each_time(reader, monkeypatch):
    monkeypatch.setattr(readings, "HOST_BYTES", 1)
    kept = Readings()
    assert [kept.of(reader, ROWS, adapter("a")).texts[0] for _ in range(2)] == [[1], [2]]


def test_nothing_is_left_of_what_was_cleared(reader):
    kept = Readings()
    for files in (None, adapter("a")):
        kept.of(reader, ROWS, files)
    kept.clear()
    assert kept.of_base(ROWS) is None
    assert kept.of(reader, ROWS, adapter("a")).texts[0] == [3]
