"""The base model and the tokens of the rows, brought by a process of their own while Ray and its workers start.

That process imports PyTorch and transformers, which the driver so never does. It ends with the driver, however that
ends.
"""

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

from trainables.values.beside import Beside
from trainables.values.errors import SweepError

if TYPE_CHECKING:
    from trainables.models.inputs import Inputs


class Fetching:
    """A call of trainables.models.inputs.fetch that has begun."""

    def __init__(self, **given: Any) -> None:
        """
        Args:
            given: its arguments.
        """
        answers, end = os.pipe()
        command = [sys.executable, "-m", __name__, str(end)]
        paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(
            command, env={**os.environ, **paths}, stdin=subprocess.PIPE, bufsize=0, pass_fds=(end,)
        )
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
                logging.getLogger(answer.name).handle(answer)
        except EOFError:
            reason = f"ended with exit code {self._process.wait()}"  # -9: killed, as by a host without memory
            raise SweepError(f"the process that brings the base model and the rows {reason}") from None
        finally:
            self.end()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        """End the process, whether it is done or not."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._answers.close()


class _ToDriver(logging.Handler):
    """Sends what is logged instead of writing it."""

    def __init__(self, answers: BinaryIO) -> None:
        super().__init__()
        self._answers = answers

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None  # what surely can be pickled
        _send(self._answers, record)


def _send(pipe: BinaryIO, value: Any) -> None:
    pickle.dump(value, pipe)
    pipe.flush()


def main(answers: BinaryIO) -> None:
    """What the process does.

    Args:
        answers: gets what is logged, then the Inputs or why there are none, each pickled.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's, which ends this process
    given = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_driver, daemon=True).start()
    logging.basicConfig(level=logging.INFO, handlers=[_ToDriver(answers)])
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
