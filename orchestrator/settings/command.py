"""How the program is started where it stands: what every hint on a terminal begins with."""

import os
import shlex
import shutil
import sys
from pathlib import Path

SCRIPT = "qlora-sweep"
"""The name of the installed script; files that travel, as report and card, say this alone."""


def command() -> str:
    """The words in front of `resume NAME`, for the shell and folder that this process was started from.

    The script's bare name where the shell finds this very script under it, else the way to it (.venv/bin/qlora-sweep);
    of a process that was started otherwise, the module.
    """
    begun = Path(sys.argv[0])
    if begun.name == SCRIPT and begun.is_file():
        return shlex.quote(SCRIPT if _is_found(SCRIPT, begun) else from_here(begun))
    return f"{python()} -m orchestrator.cli"


def pages() -> str:
    """What opens MLflow's pages: `make ui` for who says make, as the README does."""
    return "make ui" if "MAKELEVEL" in os.environ else f"{command()} ui"


def python() -> str:
    """How the shell starts the Python of this process, which has what its programs need."""
    program = Path(sys.executable)
    return shlex.quote("python" if _is_found("python", program) else from_here(program))


def _is_found(name: str, file: Path) -> bool:
    """Whether the shell finds this very file under a name: a link to it, as environments have to Python, is another."""
    found = shutil.which(name)
    return found is not None and os.path.abspath(found) == os.path.abspath(file)


def from_here(file: Path) -> str:
    """The way to a file, short where it lies under the working directory."""
    path = Path(os.path.abspath(file))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
