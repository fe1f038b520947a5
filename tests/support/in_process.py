"""The command in this process: the same words, exit code and output, without an interpreter's start of its own."""

import io
import os
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from time import perf_counter
from unittest.mock import patch

from orchestrator.cli.main import main
from tests.support.sweeps import REPO, Finished


class Terminal(io.StringIO):
    """A stream that is one."""

    def isatty(self) -> bool:
        return True


PROGRAM = str(REPO / "orchestrator" / "cli" / "__main__.py")


def called(*arguments: str, cwd: Path, typed: str | None = None, **variables: str) -> Finished:
    """Run the command to its end; for one that starts no Ray and whose libraries read no variable at import.

    An error that would be a traceback is raised as it is.

    Args:
        typed: on the terminal that the command then stands in.
    """
    stream = io.StringIO if typed is None else Terminal
    out, err, begin = stream(), stream(), perf_counter()
    umask = os.umask(0)
    os.umask(umask)
    try:
        with (
            patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200", **variables}),
            patch.object(sys, "argv", [PROGRAM, *arguments]),
            patch.object(sys, "stdin", sys.stdin if typed is None else Terminal(typed)),
            chdir(cwd),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            if "MAKELEVEL" not in variables:
                os.environ.pop("MAKELEVEL", None)
            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code or 0
    finally:
        os.umask(umask)
    return Finished(code, out.getvalue(), err.getvalue(), perf_counter() - begin)
