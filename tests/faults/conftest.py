"""A line for each fault as it is survived; the table of them at the end is tests/conftest.py's."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.faults import FAULT, Row, line


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
