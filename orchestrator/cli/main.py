"""Entry point of `qlora-sweep` and `python -m orchestrator.cli`: an error becomes one line and an exit code.

Results go to standard output (with --json one JSON object and nothing else), all else to standard error. Exit codes:
0 done, 1 the sweep failed or a finalist could not be evaluated, 2 bad setting, 3 bad data, 4 no disk space, 5 model,
data or cluster unreachable, 130 interrupted.
"""

import errno
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.cli import messages
from orchestrator.cli.group import commands
from orchestrator.cli.lines import as_typed
from trainables.values.errors import INTERRUPTED, ConfigError, DiskFull, SweepError

logger = logging.getLogger(__name__)

UNUSABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP})
"""Of a path that its user has to mend; EEXIST is a file, or a link to nowhere, in a folder's place."""


def main(work: Callable[[], Any] = commands) -> None:
    """Entry point: errors become one line and an exit code."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.umask(os.umask(0o022) | 0o022)  # nobody else writes into what this makes
    with messages.shown():
        _end(work)


def _end(work: Callable[[], Any]) -> None:
    try:
        work()
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Ray can crash when it cleans up a half start; its processes die with this one
            sys.stdout.flush()
            os._exit(INTERRUPTED)
        raise
    except SweepError as error:
        logger.error(f"error: {as_typed(str(error))}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        logger.error("interrupted")
        sys.exit(INTERRUPTED)
    except OSError as error:
        where = error.filename or Path.cwd()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            logger.error(f"error: no disk space left ({where}); free some and resume")
            sys.exit(DiskFull.exit_code)
        if error.errno not in UNUSABLE:
            raise
        why = "no folder" if error.errno == errno.EEXIST else error.strerror
        logger.error(
            f"error: {where} cannot be used ({why}); make it one that you may read and write, or start elsewhere"
        )
        sys.exit(ConfigError.exit_code)
