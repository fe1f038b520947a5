"""Text from outside, numbers of things and times, as Markdown and a terminal show them."""

import re

SPECIAL = re.compile(r"[\\`*\[\]<>|#~&!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
"""What Markdown could read as markup in the middle of a line; an underscore inside a word is plain."""
MAX_CHARS = 500


def safe(text: object) -> str:
    """Any text as plain words on one line, at most MAX_CHARS of them."""
    line = " ".join(str(text).split())
    return SPECIAL.sub(r"\\\g<0>", line if len(line) <= MAX_CHARS else line[: MAX_CHARS - 3] + "...")


def counted(n: int, noun: str) -> str:
    """So many of something: "1 trial", "2 trials"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds in words: "2 h 5 min", "3 min 7 s", "9 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
