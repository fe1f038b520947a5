"""Messages about settings in the words of whoever set them: a flag's on the command line, an argument's in Python."""

import re
from collections.abc import Mapping

FIRST_FIELD = re.compile(r"\w+(?=:| must be | is )|\w+_\w+(?= )")
"""The setting that a message is about, by its name in the program."""
TWO_WORDS = re.compile(r"(?<![\w/.'\"-])[a-z]+(?:_[a-z]+)+(?![\w/.'\"-])")
"""Others that it names: of one word they could be any word."""


def respelled(message: str, names: Mapping[str, str]) -> str:
    """A message about a field, with what is said for it and for others that it names.

    >>> respelled("n_trials: give max_hours", {"n_trials": "--trials", "max_hours": "--max-hours"})
    '--trials: give --max-hours'
    """
    found = FIRST_FIELD.match(message)
    if not found or found[0] not in names:
        return message
    return names[found[0]] + TWO_WORDS.sub(lambda name: names.get(name[0], name[0]), message[found.end() :])
