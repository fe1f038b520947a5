"""A row for each fault as it is survived, and how it is shown."""

from dataclasses import dataclass

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
