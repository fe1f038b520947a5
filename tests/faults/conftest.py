"""A line for each fault as it is survived; the table of them at the end is tests/conftest.py's."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

HEADER = ("fault", "survived", "lost", "repeated")
FAULT = "fault"
"""Property of a test's report: a row's cells, which also come from other processes to the one that prints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a fault came to.

    Attributes:
        survived: times that it happened and all that was claimed held.
        lost: finished trials that were gone afterwards.
        repeated: trials that began once more.
    """

    fault: str
    survived: int
    lost: int | None = None
    repeated: int | None = None

    def cells(self) -> tuple[str, ...]:
        numbers = (self.survived, self.lost, self.repeated)
        return (self.fault, *("-" if number is None else str(number) for number in numbers))


def line(cells: tuple[str, ...]) -> str:
    return f"{cells[0]:<64}" + "".join(f"{cell:>10}" for cell in cells[1:])


@pytest.fixture
def survived(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Say at the end of a test what its fault came to."""

    def say(fault: str, times: int = 1, **counts: int) -> None:
        row = Row(fault=fault, survived=times, **counts)
        request.node.user_properties.append((FAULT, row.cells()))
        with capsys.disabled():
            print(f"\n{line(row.cells())}")

    return say


@pytest.fixture
def place(tmp_path: Path):
    """Where one sweep of pretended trials lives."""
    from tests.faults.place import Place

    place = Place(tmp_path)
    yield place
    place.clear()
