"""What can go wrong, named by what the reader should do about it.

SweepError
|-- ConfigError     fix the setting and run again            (exit 2)
|-- DataError       fix the data file and run again          (exit 3)
|-- DiskFull        free some space and resume               (exit 4)
|-- Unreachable     give a local folder, or wait for the net (exit 5)
|-- Interrupted     go on with `resume`                    (exit 130)
|-- LedgerDamaged   restore the ledger from a copy           (exit 1)
|-- TrialFailed     nothing: the sweep goes on without this trial
`-- DeviceLost      nothing: another process takes the trial up again
"""

from collections.abc import Iterable
from difflib import get_close_matches

INTERRUPTED = 130
"""Exit code of what was interrupted and can be resumed."""


class SweepError(Exception):
    """Base of every error that this project raises on purpose."""

    exit_code = 1


class ConfigError(SweepError, ValueError):
    """A setting is wrong; the message names the field, the value and the fix."""

    exit_code = 2


class DataError(SweepError, ValueError):
    """The rows cannot be used; the message names the file and what is wrong with it."""

    exit_code = 3


class DiskFull(SweepError, OSError):
    """No space left where the sweep keeps its state."""

    exit_code = 4


class Unreachable(SweepError, ConnectionError):
    """A model or data hub, or a Ray cluster, does not answer."""

    exit_code = 5


class Interrupted(SweepError):
    """Somebody stopped it; the message says how to go on."""

    exit_code = INTERRUPTED

    def __str__(self) -> str:
        return f"interrupted; {self.args[0]}"


class LedgerDamaged(SweepError):
    """A sweep's ledger was changed or replaced since it was written; the message names the row."""


class TrialFailed(SweepError):
    """One trial cannot go on.

    Attributes:
        state: the final state it ends in, "oom" or "diverged".
    """

    def __init__(self, state: str, reason: str) -> None:
        super().__init__(state, reason)  # both: pickling makes the error anew from them
        self.state = state

    def __str__(self) -> str:
        return self.args[1]


class DeviceLost(SweepError):
    """This process can no longer use its GPU: after some CUDA errors every call fails until the process ends."""


class CaptureFailed(Exception):
    """Work could not be captured as a CUDA graph; the message says why. The same work is done eagerly instead."""


class NoRoom(CaptureFailed):
    """For lack of memory: later it may succeed."""


OTHER_NAMES = {"4bit": "nf4", "int4": "nf4", "fp4": "nf4", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
"""What other programs call a value -> its name here."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; did you mean 'x'? (have: ...)"."""
    names = sorted(names)
    near = [OTHER_NAMES[name]] if OTHER_NAMES.get(name) in names else get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{hint} (have: {', '.join(names)})"


def nearest(name: str, names: Iterable[str]) -> str:
    """The same where there are too many names to list them: "; did you mean 'x'?", or nothing."""
    near = get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
