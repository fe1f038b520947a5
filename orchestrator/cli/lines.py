"""Lines as their reader's terminal shows them: between its edges, and with settings in the words that were typed."""

import os
import re
import shutil
from collections.abc import Mapping
from textwrap import fill
from typing import TextIO

from trainables.values.spelling import respelled

SETTINGS = ("BASE_MODEL", "DATA_SPLIT", "DATA", "COLUMNS", "SPACE", "STORAGE", "TRACKING_URI")
"""Variables of make that messages name anywhere, each a flag of the same name."""
FIRST_WORDS = (*SETTINGS, "ADDRESS", "DEVICE_KIND", "HOST", "PORT", "ALLOWED_HOSTS", "PUSH")
"""Those that they begin with; elsewhere these are words like any other, as in HOST:PORT."""
TYPED = (*SETTINGS, "ADDRESS", "DEVICE_KIND", "HOST", "PORT", "ALLOWED_HOSTS", "NAME", "TRIALS", "STEPS")
TYPED += ("FINALIST_SEEDS", "DEVICE", "GPUS_PER_TRIAL", "KEEP_16BIT")
"""Those that `make sweep` and `make ui` take."""
NO_BREAK = "\N{NO-BREAK SPACE}"
HELD = "\ue000"
"""For private use, by Unicode: stands for a space in quotes, where no line is broken."""
BEGINS = re.compile(rf"({'|'.join(FIRST_WORDS)})\b")
OWN = re.compile(r"(?<![\w/.-])qlora-sweep (?=(?:stop|verify) )")
"""How rooms below name a command: by the script's bare name."""
FLAG = re.compile(r"(?<![\w-])--[a-z\d-]+")
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
NAMED = re.compile(rf"(?<![\w/.'\"=-])({'|'.join(SETTINGS)})(=|\b(?![\w/.'\"-]))")


def with_flags(message: str, flags: Mapping[str, str]) -> str:
    """A message about a field, with the flag that is typed for it."""
    return respelled(message, flags)


def _flags_typed() -> bool:
    """Not where make was called, which gives this variable to what it starts: settings are its own variables there."""
    return "MAKELEVEL" not in os.environ


def as_typed(message: str) -> str:
    """A message with settings as flags; where make was asked with its variables, BASE_MODEL=PATH, and those of flags.

    Commands of this program begin as they are started here, see orchestrator.settings.command.command.

    "DATA: no file 'DATA'; give DATA=PATH for BASE_MODEL" becomes
    "--data: no file 'DATA'; give --data PATH for --base-model",
    and of make "--trials: got 0" becomes "--trials: got 0 (with make: TRIALS=)".
    """
    if OWN.search(message):
        from orchestrator.settings.command import command  # brings all settings, which help does without

        message = OWN.sub(lambda _: f"{command()} ", message)
    if not _flags_typed():
        flags = {_flag(variable): f"{variable}=" for variable in TYPED}
        named = [flags[flag] for flag in dict.fromkeys(FLAG.findall(message)) if flag in flags]
        return f"{message} (with make: {', '.join(named)})" if named else message
    message = BEGINS.sub(lambda found: _flag(found[1]), message, count=1) if BEGINS.match(message) else message
    return NAMED.sub(lambda found: _flag(found[1]) + found[2].replace("=", " "), message)


def _flag(variable: str) -> str:
    return "--" + variable.lower().replace("_", "-")


def folded(line: str, width: int) -> str:
    """A line that is longer than a terminal is wide on several.

    Addresses, paths and "5 %" stay whole, as all words, and of a command ("$ ...") what stands in quotes.
    """
    whole = line.replace(" %", f"{NO_BREAK}%")
    if line.startswith("$ "):
        whole = QUOTED.sub(lambda found: found[0].replace(" ", HELD), whole)
    lines = fill(whole, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return lines.replace(f"{NO_BREAK}%", " %").replace(HELD, " ")


def for_stream(text: str, stream: TextIO) -> str:
    """Lines folded where a stream is a terminal; a file has no edge to fold at."""
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    lines = []
    for line in text.split("\n"):
        if len(line) <= width:
            lines.append(line)
        elif line.startswith("$ "):  # a command, which stays one where it is copied
            lines.append(folded(line, width - 2).replace("\n", " \\\n"))
        else:
            lines.append(folded(line, width))
    return "\n".join(lines)
