"""The few forms of Markdown that reports are made of; every text from outside goes through `safe`."""

import re
from collections.abc import Iterable, Sequence

SPECIAL = re.compile(r"[\\`*\[\]<>|#~&!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
"""What Markdown could read as markup in the middle of a line; an underscore inside a word is plain."""
MAX_CHARS = 500


def safe(text: object) -> str:
    """Any text as plain words on one line, at most MAX_CHARS of them."""
    line = " ".join(str(text).split())
    return SPECIAL.sub(r"\\\g<0>", line if len(line) <= MAX_CHARS else line[: MAX_CHARS - 3] + "...")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, n_words: int = 1) -> str:
    """A table; the first `n_words` columns hold words, the others figures (to the right).

    Args:
        rows: cells are Markdown; a bar in one is the writer's to escape.
    """
    rules = ["---" if i < n_words else "---:" for i in range(len(headings))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, rules, *rows))


def duration(seconds: float) -> str:
    """Seconds in words: "2 h 5 min", "3 min 7 s", "9 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
