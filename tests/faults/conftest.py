"""A line for each fault as it is survived, and a table of them at the end."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

HEADER = ("fault", "survived", "lost", "repeated")
ROWS = pytest.StashKey[list["Row"]]()


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


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


def line(cells: tuple[str, ...]) -> str:
    return f"{cells[0]:<64}" + "".join(f"{cell:>10}" for cell in cells[1:])


@pytest.fixture
def survived(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Say at the end of a test what its fault came to."""

    def say(fault: str, times: int = 1, **counts: int) -> None:
        row = Row(fault=fault, survived=times, **counts)
        request.config.stash[ROWS].append(row)
        with capsys.disabled():
            print(f"\n{line(row.cells())}")

    return say


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if config.stash[ROWS]:
        terminalreporter.section("faults")
        for cells in (HEADER, *(row.cells() for row in config.stash[ROWS])):
            terminalreporter.line(line(cells))


@pytest.fixture
def place(tmp_path: Path):
    """Where one sweep of pretended trials lives."""
    from tests.faults.place import Place

    place = Place(tmp_path)
    yield place
    place.clear()
