"""Lines that fit a terminal."""

from textwrap import fill


def folded(line: str, width: int) -> str:
    """A line that is longer than a terminal is wide on several, broken between words."""
    return fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
