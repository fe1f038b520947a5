"""A module as a process of its own, whatever the folder that the command was started in holds."""

import os
import sys
from pathlib import Path

ROOT = str(Path(__file__).parents[2])
"""What this project's packages lie in."""


def command_of(module: str, *words: str) -> list[str]:
    """What runs a module: `-P` leaves out the folder that it is started in, as `own_environment` does."""
    return [sys.executable, "-P", "-m", module, *words]


def own_environment() -> dict[str, str]:
    """This process's, with what it can import, as Ray may have brought it to this node; without the working folder,
    where that is not this project's: a file there may be called like a module."""
    paths = [os.path.abspath(path) for path in sys.path if isinstance(path, str) and path]
    others = [path for path in paths if path == ROOT or path != os.getcwd()]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(others)}
