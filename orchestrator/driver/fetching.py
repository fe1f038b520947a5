"""The base model and the tokens of the rows, brought by a process of their own while Ray and its workers start.

That process imports PyTorch and transformers, which the driver so never does. It ends with the driver, however that
ends.
"""

import fcntl
import logging
import os
import pickle
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from functools import partial
from logging.handlers import QueueHandler
from typing import TYPE_CHECKING, Any, BinaryIO

from trainables.values.beside import Beside
from trainables.values.errors import SweepError
from trainables.values.own_process import command_of, own_environment

if TYPE_CHECKING:
    from trainables.models.inputs import Inputs

STANDARD_ERROR = 2


class Fetching:
    """A call of trainables.models.inputs.fetch that has begun."""

    def __init__(self, **given: Any) -> None:
        """
        Args:
            given: its arguments.
        """
        answers, end = map(_above_streams, os.pipe())
        command = command_of(__name__, str(end))
        apart = {"pass_fds": (end,), "process_group": 0}  # Ctrl-C is the driver's, which ends this process
        self._process = subprocess.Popen(command, env=own_environment(), stdin=subprocess.PIPE, **apart)
        os.close(end)
        self._answers = os.fdopen(answers, "rb")
        self._given = Beside(partial(_send, self._process.stdin, given))  # rows may be more than a pipe holds

    def result(self) -> "Inputs":
        """What it comes to, to be asked for once. What was logged there is logged here first.

        Raises:
            SweepError: see trainables.models.inputs.fetch; or the process was killed.
        """
        try:
            while isinstance(answer := pickle.load(self._answers), logging.LogRecord):
                if (logger := logging.getLogger(answer.name)).isEnabledFor(answer.levelno):
                    logger.handle(answer)
        except (EOFError, pickle.UnpicklingError):
            reason = f"ended with exit code {self._process.wait()}"  # -9: killed, as by a host without memory
            raise SweepError(f"the process that brings the base model and the rows {reason}") from None
        finally:
            self.close()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the process, whether it is done or not."""
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):  # it was not sent all
            self._process.stdin.close()
        self._answers.close()


def _above_streams(descriptor: int) -> int:
    """The same file by a number that is no standard stream's: these may be closed, and their numbers free."""
    if descriptor > STANDARD_ERROR:
        return descriptor
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, STANDARD_ERROR + 1)
    os.close(descriptor)
    return moved


class _ToDriver(QueueHandler):
    """Sends what is logged instead of writing it."""

    def enqueue(self, record: logging.LogRecord) -> None:
        _send(self.queue, record)


def _send(pipe: BinaryIO, value: Any) -> None:
    pickle.dump(value, pipe)
    pipe.flush()


def main(answers: BinaryIO) -> None:
    """What the process does.

    Args:
        answers: gets what is logged, then the Inputs or why there are none, each pickled.
    """
    try:
        given = pickle.load(sys.stdin.buffer)
    except (EOFError, pickle.UnpicklingError):  # the driver was gone before it had said all
        return
    threading.Thread(target=_end_with_driver, daemon=True).start()
    logging.getLogger().addHandler(_ToDriver(answers))
    logging.getLogger().setLevel(logging.INFO)
    try:
        from trainables.models.inputs import fetch

        found = fetch(**given)
    except Exception as error:
        found = _sendable(error)
    _send(answers, found)


def _end_with_driver() -> None:
    """The driver writes nothing more, but keeps the pipe open as long as it lives."""
    os.read(sys.stdin.fileno(), 1)  # not by `sys.stdin`, whose lock this process would want at its end
    os._exit(1)


def _sendable(error: Exception) -> Exception:
    """The error with the lines that it came from; one of a kind that cannot be pickled is a RuntimeError."""
    lines = traceback.format_exc()
    try:
        found = pickle.loads(pickle.dumps(error))
    except Exception:
        found = RuntimeError(f"{type(error).__name__}: {error}")
    found.add_note(lines)
    return found


if __name__ == "__main__":
    main(os.fdopen(int(sys.argv[1]), "wb"))
