"""Where a sweep's time went: what each of its processes did, from the spans that it noted. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from operator import attrgetter

from trainables.values.spans import Span

IDLE = "idle"
"""Of a process: in no phase that it notes."""
IDLE_LETTER, NO_LETTER = "·", " "
"""In a bar: of an idle process, and of one that is not there yet or any more."""
MIN_PAUSE_SECONDS = 10
"""Where nothing at all is noted for so long, until a command begins, the sweep was at rest."""
FIRST_PHASES = ("inputs", "imports")
"""Of a command's driver, and of its workers."""
Rest = tuple[float, float]
"""Beginning and end, in seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessTime:
    """What one process did.

    Attributes:
        process: "driver" or "worker 0".
        pieces: in order, without gaps or overlaps, each of one phase; IDLE between two that were noted.
    """

    process: str
    pieces: tuple[Span, ...]

    @property
    def is_driver(self) -> bool:
        return self.process == "driver"

    @property
    def began(self) -> float:
        return self.pieces[0].began

    @property
    def ended(self) -> float:
        return self.pieces[-1].ended

    def seconds(self) -> dict[str, float]:
        """Of each phase, the one that it began with first."""
        total: dict[str, float] = {}
        for piece in self.pieces:
            total[piece.phase] = total.get(piece.phase, 0.0) + piece.seconds
        return total


def by_process(spans: Sequence[Span], rests: Sequence[Rest] = ()) -> list[ProcessTime]:
    """What each process did: the driver, then workers by number.

    Where spans lie inside each other, the time is the innermost one's: the base that a comparison loads is loading.

    Args:
        rests: left out, as from `pauses`: what comes after one is moved to its beginning.
    """
    ordered = sorted(_without(rests, spans), key=attrgetter("process"))
    found = [_process_time(process, list(own)) for process, own in groupby(ordered, key=attrgetter("process"))]
    return sorted(found, key=_place)


def pauses(spans: Sequence[Span]) -> list[Rest]:
    """Stretches of MIN_PAUSE_SECONDS or more, before a command began, that no process noted anything in."""
    ordered = sorted(spans, key=attrgetter("began"))
    ends = accumulate((span.ended for span in ordered), max)  # of all that began by then
    gaps = [(end, after) for end, after in zip(ends, ordered[1:], strict=False) if after.phase in FIRST_PHASES]
    return [(end, after.began) for end, after in gaps if after.began - end >= MIN_PAUSE_SECONDS]


def _without(rests: Sequence[Rest], spans: Sequence[Span]) -> Iterator[Span]:
    for span in spans:
        rest = sum(end - begin for begin, end in rests if end <= span.began)
        yield replace(span, began=span.began - rest, ended=span.ended - rest)


def _place(one: ProcessTime) -> tuple[bool, int, str]:
    number = one.process.rpartition(" ")[2]
    return not one.is_driver, int(number) if number.isdigit() else 0, one.process


def _process_time(process: str, spans: Sequence[Span]) -> ProcessTime:
    edges = sorted({edge for span in spans for edge in (span.began, span.ended)})
    pieces: list[Span] = []
    for began, ended in pairwise(edges):
        inside = [span for span in spans if span.began <= began and ended <= span.ended]
        phase = min(inside, key=attrgetter("seconds")).phase if inside else IDLE
        if pieces and pieces[-1].phase == phase:
            began = pieces.pop().began
        pieces.append(Span(process=process, phase=phase, began=began, ended=ended))
    return ProcessTime(process=process, pieces=tuple(pieces))


def letters(phases: Iterable[str]) -> dict[str, str]:
    """A letter of each that no other has: the initial of one of its words, where one is free.

    >>> letters(["capture", "cost key", "comparison"])
    {'capture': 'c', 'cost key': 'k', 'comparison': 'o'}
    """
    found: dict[str, str] = {}
    for phase in phases:
        wanted = [*(word[0] for word in phase.split()), *phase.replace(" ", ""), "?"]
        found.setdefault(phase, next(letter for letter in wanted if letter not in found.values() or letter == "?"))
    return found


def _marked(phase: str, letter: str) -> str:
    """The phase with its letter in brackets: "cost [k]ey"."""
    place = max(f" {phase}".find(f" {letter}"), 0) or phase.find(letter)
    return f"{phase[:place]}[{letter}]{phase[place + 1 :]}"


def bar(one: ProcessTime, began: float, ended: float, width: int, of_phase: Mapping[str, str]) -> str:
    """One process as a line of characters: each column the letter of the phase that it is longest in.

    Args:
        began, ended: what the line stands for, in seconds since the epoch.
        of_phase: the letter of each.
    """
    column = (ended - began) / width
    return "".join(_letter(one, began + place * column, column, of_phase) for place in range(width))


def _letter(one: ProcessTime, began: float, seconds: float, of_phase: Mapping[str, str]) -> str:
    within: dict[str, float] = {}
    for piece in one.pieces:
        shared = min(piece.ended, began + seconds) - max(piece.began, began)
        if shared > 0:
            within[piece.phase] = within.get(piece.phase, 0.0) + shared
    return of_phase.get(max(within, key=within.__getitem__), IDLE_LETTER) if within else NO_LETTER


def lines(spans: Sequence[Span], width: int) -> Iterator[str]:
    """The timeline as text: seconds of each phase of each process, then a bar each.

    Args:
        width: columns of the terminal.
    """
    rests = pauses(spans)
    processes = by_process(spans, rests)
    if not processes:
        yield "no timeline: this sweep began before one was kept, or no task of it has ended"
        return
    began, ended = min(one.began for one in processes), max(one.ended for one in processes)
    of_role = {role: letters(_phases(processes, role)) for role in (True, False)}  # of the driver, of workers
    rest = sum(end - begin for begin, end in rests)
    left_out = f"; {rest:.0f} s in which nothing was noted are left out" if rest else ""
    yield f"{ended - began:.1f} s from the first thing noted to the last{left_out}"
    for one in processes:
        marked = {phase: _marked(phase, letter) for phase, letter in of_role[one.is_driver].items()}
        parts = [f"{marked.get(phase, phase)} {seconds:.1f} s" for phase, seconds in one.seconds().items()]
        yield f"{one.process}: {', '.join(parts)}"
    label = max(len(one.process) for one in processes) + 2
    for one in processes:
        yield f"{one.process:<{label}}{bar(one, began, ended, max(10, width - label), of_role[one.is_driver])}"
    yield f"each column: the phase it is longest in, by its letter in brackets; {IDLE_LETTER} is idle"
    yield "tasks: while workers have some; cost key: a step's memory and time, measured"


def _phases(processes: Sequence[ProcessTime], is_driver: bool) -> Iterator[str]:
    """In the order in which they began."""
    pieces = [piece for one in processes if one.is_driver == is_driver for piece in one.pieces]
    return (piece.phase for piece in sorted(pieces, key=attrgetter("began")) if piece.phase != IDLE)
