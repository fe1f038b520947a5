"""What the program says to people while it works: log messages of our packages, on standard error."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.cli.lines import for_stream
from orchestrator.security.redaction import redacted

PACKAGES = ("orchestrator", "search_spaces", "trainables")
"""Whose messages are shown from level INFO on; of other libraries only errors are, and no warning."""


class StandardError(logging.Handler):
    """Prints each message, and nothing but it, to what `sys.stderr` is at that time: a live view takes its place."""

    def emit(self, record: logging.LogRecord) -> None:
        print(for_stream(self.format(record), sys.stderr), file=sys.stderr, flush=True)


class WithoutSecrets(logging.Filter):
    """Cuts secrets out of a message before it is shown."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redacted(record.getMessage()), None
        return True


@contextmanager
def shown() -> Iterator[None]:
    """Show messages on standard error, and nowhere else, for as long as a command works; other libraries are silent."""
    handler = StandardError()
    handler.addFilter(WithoutSecrets())
    loggers = [*map(logging.getLogger, PACKAGES)]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    unheard, level = logging.lastResort, logging.lastResort.level  # what shows messages that no handler takes
    unheard.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        unheard.setLevel(level)
        for logger in loggers:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
            logger.propagate = True
