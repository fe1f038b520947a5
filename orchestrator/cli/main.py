"""Entry point of `qlora-sweep` and `python -m orchestrator.cli`: an error becomes one line and an exit code.

Results go to standard output (with --json one JSON object and nothing else), all else to standard error. Exit codes:
0 done, 1 the sweep failed or a finalist could not be evaluated, 2 bad setting, 3 bad data, 4 no disk space, 5 model,
data or cluster unreachable, 130 interrupted.
"""

import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import typer

from orchestrator.cli import messages
from orchestrator.cli.group import commands
from orchestrator.cli.lines import as_typed
from orchestrator.cli.output import print_error
from trainables.values.errors import INTERRUPTED, ConfigError, DiskFull, Interrupted, SweepError

logger = logging.getLogger(__name__)

UNUSABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP})
"""Of a path that its user has to mend; EEXIST is a file, or a link to nowhere, in a folder's place."""


NO_WINDOWS = "Windows itself is not supported; run this in WSL (`wsl --install`, then Linux's commands)"

UsageError = typer.BadParameter.__mro__[1]
"""Of the click that this Typer brings: a command line that cannot be read."""


PROGRAM = partial(commands, standalone_mode=False)
"""Leaves what ends it to `main`, so that a wrong flag reads as any other error."""


def main(work: Callable[[], Any] = PROGRAM) -> None:
    """Entry point: errors become one line and an exit code."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of processes that this one starts
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.umask(os.umask(0o022) | 0o022)  # nobody else writes into what this makes
    with messages.shown():
        if sys.platform == "win32":  # said before what is imported fails there
            _refuse("ConfigError", NO_WINDOWS, ConfigError.exit_code)
        _end(work)


def _end(work: Callable[[], Any]) -> None:
    try:
        code = work()  # as click returns it: of an Exit its code, of any other end None
    except UsageError as error:
        if "Help" in type(error).__name__:  # no argument at all, which is answered with the help
            error.show()
            sys.exit(ConfigError.exit_code)
        _refuse("UsageError", as_typed(_said(error, sys.argv)), ConfigError.exit_code)
    except Interrupted as error:
        logger.error(str(error))
        print_error("Interrupted", str(error), INTERRUPTED)
        code = INTERRUPTED
    except SweepError as error:
        _refuse(type(error).__name__, as_typed(str(error)), error.exit_code)
    except KeyboardInterrupt:
        logger.error("interrupted")
        print_error("Interrupted", "interrupted", INTERRUPTED)
        code = INTERRUPTED
    except OSError as error:
        _end_of_disk(error)
    _leave(code or 0)


def _leave(code: int) -> NoReturn:
    """End; at once where there is still a Ray, even half started: cleaning up it can crash, or wait a minute for a part
    that is dead. Its processes die with this one."""
    private_ray, ray = sys.modules.get("orchestrator.cluster.private_ray"), sys.modules.get("ray")
    has_ray = private_ray is not None and (private_ray.is_starting() or (ray is not None and ray.is_initialized()))
    if code == INTERRUPTED or has_ray:
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _refuse(kind: str, message: str, exit_code: int) -> NoReturn:
    """Say what is wrong, in one line on standard error and where JSON was asked for in one object as well."""
    logger.error(f"error: {message}")
    print_error(kind, message, exit_code)
    _leave(exit_code)


def _said(error: Any, words: Sequence[str]) -> str:
    """What click says of a command line, with the flag or argument in front, as all our errors have it.

    Args:
        words: of the command line.
    """
    text = " ".join(error.format_message().split())
    found = re.fullmatch(r"Invalid value for '([^' ]+)[^']*'(?: / '[^']+')*: (.*?)\.?", text)
    if not found:
        return text
    number = re.fullmatch(r"Input should be a valid (integer|number), unable to parse .*", found[2])
    return f"{found[1]}: {_no_number(number[1], found[1], words) if number else found[2]}"


def _no_number(kind: str, flag: str, words: Sequence[str]) -> str:
    """What is wrong with a flag's value, with the value, which click does not say."""
    given = re.search(rf"(?:^|\0){re.escape(flag)}[=\0]([^\0]*)", "\0".join(words))
    return f"must be a {'whole ' * (kind == 'integer')}number" + (f", got {given[1]!r}" if given else "")


def _end_of_disk(error: OSError) -> NoReturn:
    """Of a path that cannot be used, what its user can do about it.

    Raises:
        OSError: nothing.
    """
    where = error.filename or Path.cwd()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        _refuse("DiskFull", f"no disk space left ({where}); free some and resume", DiskFull.exit_code)
    if error.errno not in UNUSABLE:
        raise error
    why = "no folder" if error.errno == errno.EEXIST else error.strerror
    remedy = "make it one that you may read and write, or start elsewhere"
    _refuse("ConfigError", f"{where} cannot be used ({why}); {remedy}", ConfigError.exit_code)
