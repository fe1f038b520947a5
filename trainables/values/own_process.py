"""A module as a process of its own, whatever the folder that the command was started in holds."""

import os
import sys


def command_of(module: str, *words: str) -> list[str]:
    """What runs a module: a file of the working folder never stands for one that it imports (`-P`)."""
    return [sys.executable, "-P", "-m", module, *words]


def own_environment() -> dict[str, str]:
    """This process's, with what it can import, as Ray may have brought it to this node."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
